"""RoIAlign, forward and backward: bilinear samples on the RoI's exact bins [Mask R-CNN §3].

Deterministic on every device. kernels/triton and, in plain PyTorch, kernels/eager hold the two
implementations.

Legend: N images, R rois, C channels, P pooled size, L levels.
"""

from collections.abc import Sequence

import torch

from accelerated.backend import kernels
from accelerated.kernels.arguments import Sampling
from accelerated.rois import check, empty_output, pair, prepare, register_autograd


def roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    image_index: torch.Tensor,
    *,
    output_size: int | Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    aggregate: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    """Average (or take the largest of) bilinear samples in each bin of each RoI [Mask R-CNN §3].

    features        [N, C, H, W]  float64, float32, float16 or bfloat16; contiguous, channels-last
                                  or strided
    rois            [R, 4]        float32 or float64; xyxy, input-image pixels; may leave the image.
                                  Coordinates are computed in their dtype
    image_index     [R]           int, row of `features`; -1: a padding RoI, whose output is 0
    output_size     P or (P_h, P_w)
    spatial_scale   feature pixels per image pixel
    sampling_ratio  samples per bin and axis; 0: ceil(bin side)
    aligned         True: shift by half a pixel; RoIs with x2 < x1 or y2 < y1 give 0.
                    False: RoIs are at least one feature pixel wide
    aggregate       "mean", or "max": the first largest sample in row-major order
    backend         "auto", "torch" or "triton"
    Returns         [R, C, P_h, P_w], in the dtype and memory format of `features`; accumulated in
                    float32 or float64.

    A sample more than one pixel outside the map is 0 but still counts in the average (SPEC §1).
    NaN in a feature reaches exactly the bins that give it a weight. No gradient reaches `rois`.
    A non-finite RoI raises ValueError on a CPU, naming its row; on a GPU its output is 0.
    """
    return multilevel(
        [features],
        rois,
        image_index,
        torch.zeros_like(image_index),
        scales=[spatial_scale],
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        aggregate=aggregate,
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
    sampling_ratio: int,
    aligned: bool,
    aggregate: str = "mean",
    backend: str = "auto",
) -> torch.Tensor:
    """Pool each RoI r from features[level_index[r]] by `roi_align`, all in one launch.

    features     L tensors [N, C, H_l, W_l] of one dtype
    level_index  [R]  int, 0..L-1
    scales       L floats, feature pixels per image pixel
    Returns      [R, C, P_h, P_w].

    Shapes are fixed and a GPU is not synchronised, except that backend "torch" with sampling_ratio
    0 asks it once for the largest number of samples.
    """
    if aggregate not in ("mean", "max"):
        raise ValueError(f"aggregate: expected 'mean' or 'max', got {aggregate!r}")
    arguments = prepare(features, rois, image_index, level_index, scales)
    size = pair(output_size)
    return _forward(*arguments, size, sampling_ratio, aligned, aggregate, backend)[0]


ARGUMENTS = (
    "Tensor[] features, Tensor rois, Tensor image_index, Tensor level_index, float[] scales,"
    " int[] output_size, int sampling_ratio, bool aligned, str aggregate, str backend"
)


@torch.library.custom_op(
    "maskrcnn::roi_align", mutates_args=(), schema=f"({ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(features, *arguments):
    """Return the output, and for "max" the index of each bin's sample [R, C, P_h, P_w] int32."""
    *fields, aggregate, backend = arguments
    sampling, maximum = Sampling(*fields), aggregate == "max"
    check(features, sampling.rois, sampling.image_index, sampling.level_index)
    out, number = empty_output(features, sampling.rois, sampling.output_size, maximum)
    implementation = kernels("roi_align", backend, out)
    implementation.forward(features, sampling, out, number if maximum else None)
    return out, number


@_forward.register_fake
def _(features, *arguments):
    *fields, aggregate, _ = arguments
    sampling = Sampling(*fields)
    return empty_output(features, sampling.rois, sampling.output_size, aggregate == "max")


@torch.library.custom_op(
    "maskrcnn::roi_align_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor number, {ARGUMENTS}) -> Tensor[]",
)
def _backward(grad_out, number, features, *arguments):
    """Return the gradients of the features, of which only shapes, dtype and strides are read."""
    *fields, aggregate, backend = arguments
    grads = [torch.empty_like(x) for x in features]
    implementation = kernels("roi_align", backend, grad_out)
    number = number if aggregate == "max" else None
    implementation.backward(grad_out, number, Sampling(*fields), grads)
    return grads


register_autograd(_forward, _backward)
