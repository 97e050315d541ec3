"""The addresses that the programs of RoIAlign's forward kernel read, for notebook 11.

`recorded` asks Triton's interpreter. It wraps a function of the interpreter that is private and may
change, and knows when that has happened. `computed` needs no Triton: it works the same addresses
out from the positions of the samples and the strides of the features.

Legend: N images, R rois, C channels, P pooled size, Q bins of a block, B channels of a block.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from accelerated.roi_align import roi_align
from reference.autodiff import Array
from reference.roi_align import neighbours, sample_positions

# As in accelerated/kernels/triton/roi_align.py.
CHANNELS = 256


class Load(NamedTuple):
    """One load of a program: offsets [Q, B] in bytes from the first feature, and mask [Q, B]."""

    offsets: Array
    mask: Array


# {(program id 0, program id 1): its loads of features in their order}
Programs = dict[tuple[int, int], list[Load]]


def loads(
    features: torch.Tensor, rois: torch.Tensor, image_index: torch.Tensor, **keywords: Any
) -> tuple[Programs, str]:
    """Return what every program loads, and "recorded" or "computed", how that was found out.

    The arguments are those of `accelerated.roi_align.roi_align` without `backend`; the mean, with
    sampling_ratio > 0 and aligned=True.
    """
    found = recorded(features, rois, image_index, **keywords)
    if found is not None:
        return found, "recorded"
    return computed(features, rois, image_index, **keywords), "computed"


def recorded(
    features: torch.Tensor, rois: torch.Tensor, image_index: torch.Tensor, **keywords: Any
) -> Programs | None:
    """Run the kernel in Triton's interpreter and note what it loads; None if that cannot be seen.

    The arguments are those of `loads`.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return None
    log = []
    launch = partial(roi_align, features, rois, image_index, **keywords, backend="triton")
    if not _watch(launch, log):
        return None
    first, size = features.data_ptr(), features.untyped_storage().nbytes()
    programs = {}
    for program, pointers, mask in log:
        offsets = pointers.astype(np.int64) - first
        # The boxes and the indices of the images are loaded too, as single numbers.
        if offsets.ndim == 2 and (offsets[mask] >= 0).all() and (offsets[mask] < size).all():
            programs.setdefault(program, []).append(Load(offsets, mask))
    return programs or None


def _watch(launch: Callable[[], Any], log: list) -> bool:
    """Launch a kernel and append (program ids, pointers, mask) of each load to `log`.

    Returns False if the interpreter has no such function; then nothing is launched.
    """
    try:
        from triton.runtime.interpreter import InterpreterBuilder as Builder

        load = Builder.create_masked_load
    except (ImportError, AttributeError):
        return False

    def noted(self, pointers, mask, *rest):
        # Where these have other names, nothing is noted.
        with contextlib.suppress(AttributeError, TypeError):
            log.append((tuple(self.grid_idx[:2]), pointers.data.copy(), mask.data.copy()))
        return load(self, pointers, mask, *rest)

    Builder.create_masked_load = noted
    try:
        launch()
    finally:
        Builder.create_masked_load = load
    return True


def computed(
    features: torch.Tensor,
    rois: torch.Tensor,
    image_index: torch.Tensor,
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool = True,
) -> Programs:
    """Work out from the strides what every program loads. The arguments are those of `loads`.

    Raises ValueError for sampling that it cannot work out.
    """
    if sampling_ratio <= 0 or not aligned:
        raise ValueError("computed: expected sampling_ratio > 0 and aligned=True")
    (_, channels, height, width), item = features.shape, features.element_size()
    stride_n, stride_c, stride_h, stride_w = (stride * item for stride in features.stride())
    block_q, block_c = _power_of_2(output_size), min(CHANNELS, _power_of_2(channels))
    programs = {}
    for r, image in enumerate(image_index.tolist()):
        x1, y1, x2, y2 = rois[r].numpy() * rois.numpy().dtype.type(spatial_scale)
        # The block has more bins than the RoI, of the same size; the kernel does not load them.
        exists = np.arange(block_q) < output_size
        x2 = x1 + (x2 - x1) * block_q / output_size
        rows = _taps(y1, y2, output_size, height, sampling_ratio)
        columns = _taps(x1, x2, block_q, width, sampling_ratio)
        for p, block in product(range(output_size), range(-(-channels // block_c))):
            c = block * block_c + np.arange(block_c)
            found = programs[r * output_size + p, block] = []
            for i, j in product(range(sampling_ratio), repeat=2):
                for (y, weight_y), (x, weight_x) in product(rows, columns):
                    offset = image * stride_n + y[p, i] * stride_h + x[:, j] * stride_w
                    mask = (weight_y[p, i] * weight_x[:, j] != 0) & exists
                    mask = mask[:, None] & (c < channels)
                    found.append(Load(offset[:, None] + c * stride_c, mask))
    return programs


def _taps(low, high, bins, size, sampling_ratio):
    """Return (pixels, weights) [bins, g] of the lower and of the upper neighbours on one axis."""
    positions = sample_positions(low, high, bins, sampling_ratio, True)
    lower, upper, weight_lower, weight_upper = neighbours(positions, size)
    return (lower, weight_lower), (upper, weight_upper)


def _power_of_2(number):
    return 1 << (number - 1).bit_length()
