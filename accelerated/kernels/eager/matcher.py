"""Matching in plain PyTorch, a few ground truths at a time.

Legend: N images, G ground-truth slots, T candidates.
"""

import torch

from accelerated.kernels.arguments import Matching
from accelerated.kernels.eager.nms import iou as box_iou

# Number of ground truths whose IoU with all candidates is stored at a time.
CHUNK = 8


def match(
    iou: torch.Tensor, gt_valid: torch.Tensor, rules: Matching
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and matched [N, T] int64 for overlaps iou [N, G, T], G >= 1 and T >= 1."""
    return _labels(*_best(iou, gt_valid, rules), rules)


def match_boxes(
    gt_boxes: torch.Tensor, gt_valid: torch.Tensor, candidates: torch.Tensor, rules: Matching
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and matched [N, T] int64; all boxes have one dtype, G >= 1 and T >= 1.

    gt_boxes [N, G, 4], gt_valid [N, G] bool, candidates [T, 4] or [N, T, 4].
    """
    overlaps = box_iou(gt_boxes[:, :CHUNK], candidates)
    best, matched, is_best = _best(overlaps, gt_valid[:, :CHUNK], rules)
    for start in range(CHUNK, gt_boxes.shape[1], CHUNK):
        rows = slice(start, start + CHUNK)
        overlaps = box_iou(gt_boxes[:, rows], candidates)
        later_best, later_matched, is_later_best = _best(overlaps, gt_valid[:, rows], rules)
        better = later_best > best
        best = torch.where(better, later_best, best)
        matched = torch.where(better, later_matched + start, matched)
        is_best = is_best | is_later_best
    return _labels(best, matched, is_best, rules)


def _best(iou, gt_valid, rules):
    """Find the best match of each candidate: (highest IoU, its ground truth, is_best), each [N, T].

    is_best tells whether the IoU is the highest of some ground truth. Without any, the IoU is -1.
    """
    iou = torch.where(gt_valid[..., None], iou, -1)
    # The maximum is the first of equals.
    best, matched = iou.max(dim=1)
    if not rules.low_quality:
        return best, matched, torch.zeros_like(gt_valid[:, :1])
    best_of_truth = iou.amax(dim=2, keepdim=True)
    counts = gt_valid[..., None] if rules.zero_iou else best_of_truth > 0
    return best, matched, ((iou == best_of_truth) & counts).any(dim=1)


def _labels(best, matched, is_best, rules):
    labels = torch.where(best >= rules.high, 1, torch.where(best < rules.low, 0, -1))
    return torch.where(is_best, 1, labels), matched
