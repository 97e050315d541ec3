"""Matching of candidates (anchors or proposals) to ground truths.

kernels/triton and, in plain PyTorch, kernels/eager hold the two implementations.

Legend: N images, G ground-truth slots, T candidates.
"""

import torch

from accelerated.backend import kernels
from accelerated.kernels.arguments import Matching
from accelerated.kernels.eager import matcher as eager


def match(
    iou: torch.Tensor,
    gt_valid: torch.Tensor,
    high: float,
    low: float,
    low_quality: bool,
    zero_iou: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label and match candidates by their overlaps, iou [N, G, T] [Faster R-CNN §3.1.2].

    gt_valid [N, G] bool: a padded ground truth matches nothing.

    Returns
    labels   [N, T]  1 foreground (best IoU >= high), 0 background (best IoU < low), -1 ignored
    matched  [N, T]  the ground truth of highest IoU, the first of equals, for any label; 0 if none

    low_quality  candidates whose IoU equals the maximum of some ground truth (all of them, on ties)
                 are foreground too, and keep their match
    zero_iou     even if that maximum is 0, which makes every candidate that misses it foreground
    """
    return eager.match(iou, gt_valid, Matching(high, low, low_quality, zero_iou))


def match_boxes(
    gt_boxes: torch.Tensor,
    gt_valid: torch.Tensor,
    candidates: torch.Tensor,
    high: float,
    low: float,
    low_quality: bool,
    zero_iou: bool = True,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match by boxes gt_boxes [N, G, 4], candidates [T, 4] or [N, T, 4]; see `match`.

    The IoU of all ground truths with all candidates is never stored at once. It is computed in
    float32, or float64 for float64 boxes.
    """
    boxes = gt_boxes.detach(), gt_valid, candidates.detach()
    return _match_boxes(*boxes, float(high), float(low), low_quality, zero_iou, backend)


@torch.library.custom_op("maskrcnn::match_boxes", mutates_args=())
def _match_boxes(
    gt_boxes: torch.Tensor,
    gt_valid: torch.Tensor,
    candidates: torch.Tensor,
    high: float,
    low: float,
    low_quality: bool,
    zero_iou: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    precision = torch.promote_types(gt_boxes.dtype, candidates.dtype)
    precision = torch.promote_types(precision, torch.float32)
    boxes = gt_boxes.to(precision), gt_valid, candidates.to(precision)
    if gt_boxes.shape[1] == 0 or candidates.shape[-2] == 0:
        # Without ground truth all is background.
        labels, matched = _empty(gt_boxes, candidates)
        return labels.zero_(), matched.zero_()
    rules = Matching(high, low, low_quality, zero_iou)
    return kernels("matcher", backend, gt_boxes).match_boxes(*boxes, rules)


@_match_boxes.register_fake
def _(gt_boxes, gt_valid, candidates, *_):
    return _empty(gt_boxes, candidates)


def _empty(gt_boxes, candidates):
    labels = gt_boxes.new_empty((len(gt_boxes), candidates.shape[-2]), dtype=torch.int64)
    return labels, torch.empty_like(labels)
