"""RoIPool, forward and backward: RoI and bins rounded to whole pixels [Fast R-CNN §2.1].

Deterministic on every device. kernels/triton and, in plain PyTorch, kernels/eager hold the two
implementations.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

from collections.abc import Sequence

import torch

from accelerated.backend import kernels
from accelerated.kernels.arguments import Bins
from accelerated.kernels.eager.tables import choose
from accelerated.rois import check, empty_output, pair, prepare, register_autograd, whole_pixels


def roi_pool(
    features: torch.Tensor,
    rois: torch.Tensor,
    image_index: torch.Tensor,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Take the largest feature in each bin of each RoI [Fast R-CNN §2.1; SPEC §2].

    features       [N, C, H, W]  float64, float32, float16 or bfloat16; contiguous, channels-last
                                 or strided
    rois           [R, 4]        float32 or float64; xyxy, input-image pixels; may leave the image.
                                 Coordinates are computed in their dtype
    image_index    [R]           int, row of `features`; -1: a padding RoI, whose output is 0
    output_size    P or (P_h, P_w)
    spatial_scale  feature pixels per image pixel
    backend        "auto", "torch" or "triton"
    Returns        [R, C, P_h, P_w], in dtype and memory format of `features`; an empty bin is 0.

    Coordinates round half away from zero, the end is inclusive, bins may overlap by a pixel. NaN
    reaches the bins it lies in. The first maximum in row-major order takes the whole gradient. A
    non-finite RoI raises ValueError on a CPU, naming its row; on a GPU its output is 0.
    """
    return multilevel(
        [features],
        rois,
        image_index,
        torch.zeros_like(image_index),
        scales=[spatial_scale],
        output_size=output_size,
        backend=backend,
    )


def multilevel(
    features: Sequence[torch.Tensor],
    rois: torch.Tensor,
    image_index: torch.Tensor,
    level_index: torch.Tensor,
    *,
    scales: Sequence[float],
    output_size: int | Sequence[int],
    backend: str = "auto",
) -> torch.Tensor:
    """Pool each RoI r from features[level_index[r]] by `roi_pool`, all in one launch.

    features     L tensors [N, C, H_l, W_l] of one dtype
    level_index  [R]  int, 0..L-1
    scales       L floats, feature pixels per image pixel
    Returns      [R, C, P_h, P_w].

    Shapes are fixed and a GPU is not synchronised, except that backend "torch" asks it for the
    sizes of the bins.
    """
    arguments = prepare(features, rois, image_index, level_index, scales)
    return _forward(*arguments, pair(output_size), backend)[0]


ARGUMENTS = (
    "Tensor[] features, Tensor rois, Tensor image_index, Tensor level_index, float[] scales,"
    " int[] output_size, str backend"
)


@torch.library.custom_op(
    "maskrcnn::roi_pool", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(features, rois, image_index, level_index, scales, output_size, backend):
    """Return the output and argmax [R, C, P_h, P_w] int32, y * W_l + x; -1 in an empty bin."""
    check(features, rois, image_index, level_index)
    out, argmax = empty_output(features, rois, output_size, True)
    bins = _bins(features, rois, image_index, level_index, scales, output_size)
    kernels("roi_pool", backend, rois).forward(features, bins, out, argmax)
    return out, argmax


@_forward.register_fake
def _(features, rois, image_index, level_index, scales, output_size, backend):
    return empty_output(features, rois, output_size, True)


@torch.library.custom_op(
    "maskrcnn::roi_pool_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor argmax, {ARGUMENTS}) -> Tensor[]",
)
def _backward(grad_out, argmax, features, *arguments):
    """Return the gradients of the features, of which only shapes, dtype and strides are read."""
    *rois, backend = arguments
    grads = [torch.empty_like(x) for x in features]
    kernels("roi_pool", backend, grad_out).backward(grad_out, argmax, _bins(features, *rois), grads)
    return grads


register_autograd(_forward, _backward)


def _bins(features, rois, image_index, level_index, scales, output_size):
    """Return the bins in feature pixels."""
    height, width = (
        choose(level_index, [x.shape[axis] for x in features], torch.int64) for axis in (2, 3)
    )
    valid = (image_index >= 0) & rois.isfinite().all(1)
    rois = torch.where(valid[:, None], rois, 0)
    left, top, right, bottom = whole_pixels(rois, choose(level_index, scales, rois.dtype)).unbind(1)
    tops, rows = _edges(top, bottom, height, output_size[0])
    lefts, columns = _edges(left, right, width, output_size[1])
    return Bins(image_index, level_index, tops, rows * valid[:, None], lefts, columns)


def _edges(start, end, size, bins):
    """Return the first feature pixel of each bin along one axis, and how many [R, P] int64."""
    # On a GPU, dividing by a number multiplies by its rounded reciprocal.
    side = ((end - start) / torch.full_like(start, bins))[:, None]
    corner = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    first = (corner[:-1] * side).floor() + start[:, None]
    last = (corner[1:] * side).ceil() + start[:, None]
    size = size[:, None].to(start.dtype)
    first, last = (torch.minimum(x.clamp(min=0), size).long() for x in (first, last))
    return first, (last - first).clamp(min=0)
