"""This project's operators in those of ONNX, for torch.onnx.export.

ONNX has both, RoIAlign per level and non-maximum suppression, and its runtimes have kernels for
them. Counts that depend on the data stay inside of each translation.

Legend: B rows of M boxes, R rois, L levels, C channels, P pooled size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from onnxscript import opset20

from accelerated import nms, roi_align  # noqa: F401

OPSET = 20
# The operators are annotated for values, and record when they are given symbols.
op: Any = opset20
# onnx.TensorProto.BOOL
BOOL = 9


def keep_mask(boxes: Any, valid: Any, iou_threshold: float, group: None, backend: str) -> Any:
    """Return which boxes greedy suppression keeps [B, M] bool, from rows by falling score.

    ONNX ranks by scores, so each box gets the score -slot. An invalid one stays below the limit.
    """
    count = valid.shape[1]
    rank = op.Constant(value_floats=[float(-slot) for slot in range(count)])
    scores = op.Where(valid, rank, op.Constant(value_float=-float(count)))
    kept = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[count]),
        op.Constant(value_floats=[nms.rounded_down(iou_threshold, torch.float32)]),
        op.Constant(value_floats=[0.5 - count]),
    )
    # Row, class and slot of each.
    index = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(op.Constant(value_int=1), op.Shape(index, start=0, end=1))
    zeros = op.Expand(op.Constant(value_int=0), op.Shape(valid))
    return op.Cast(op.ScatterND(zeros, index, ones), to=BOOL)


def align(
    features: Sequence[Any],
    rois: Any,
    image_index: Any,
    level_index: Any,
    scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    aggregate: str,
    backend: str,
) -> tuple[Any, Any]:
    """Return RoIAlign's means [R, C, P_h, P_w] and, as the operator does, an empty tensor.

    Each level pools its own RoIs. Those of no image stay 0, and so do inverted ones if `aligned`.
    """
    height, width = output_size
    shape = [rois.shape[0], features[0].shape[1], height, width]
    out = op.Expand(op.Constant(value_float=0.0), op.Constant(value_ints=shape))
    pools = op.GreaterOrEqual(image_index, op.Constant(value_int=0))
    if aligned:
        x1, y1, x2, y2 = (
            op.Gather(rois, op.Constant(value_int=column), axis=1) for column in range(4)
        )
        upright = op.And(op.GreaterOrEqual(x2, x1), op.GreaterOrEqual(y2, y1))
        pools = op.And(pools, upright)
    for level, (x, scale) in enumerate(zip(features, scales, strict=True)):
        here = op.And(pools, op.Equal(level_index, op.Constant(value_int=level)))
        rows = op.Squeeze(op.NonZero(here), op.Constant(value_ints=[0]))
        values = op.RoiAlign(
            x,
            op.Gather(rois, rows),
            op.Gather(image_index, rows),
            mode="avg",
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=height,
            output_width=width,
            sampling_ratio=max(sampling_ratio, 0),
            spatial_scale=scale,
        )
        out = op.ScatterND(out, op.Unsqueeze(rows, op.Constant(value_ints=[1])), values)
    return out, op.Constant(value_ints=[0])


def sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """Return values and indices; TopK orders equal values by rising index."""
    count = op.Constant(value_ints=[x.shape[dim]])
    return op.TopK(x, count, axis=dim, largest=int(descending))


TRANSLATIONS = {
    torch.ops.maskrcnn.nms_keep_mask.default: keep_mask,
    torch.ops.maskrcnn.roi_align.default: align,
    torch.ops.aten.sort.stable: sort,
}
