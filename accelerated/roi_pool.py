"""RoIPool, forward and backward: RoI and bins rounded to whole pixels [Fast R-CNN §2.1].

Deterministic on every device. kernels/triton and, in plain PyTorch, kernels/eager hold the two
implementations.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

from collections.abc import Sequence

import torch

from accelerated.backend import kernels
from accelerated.kernels.arguments import Pooling
from accelerated.rois import check, empty_output, pair, prepare, register_autograd


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
    pooling = Pooling(rois, image_index, level_index, scales, output_size)
    kernels("roi_pool", backend, rois).forward(features, pooling, out, argmax)
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
    *fields, backend = arguments
    grads = [torch.empty_like(x) for x in features]
    kernels("roi_pool", backend, grad_out).backward(grad_out, argmax, Pooling(*fields), grads)
    return grads


register_autograd(_forward, _backward)
