"""Matching of candidates (anchors or proposals) to ground truths.

Legend: N images, G ground-truth slots, T candidates.
"""

import torch

from accelerated.boxes import iou as box_iou

# Number of ground truths whose IoU with all candidates is stored at a time.
CHUNK = 8


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
    return _labels(*_best(iou, gt_valid, zero_iou), high, low, low_quality)


def match_boxes(
    gt_boxes: torch.Tensor,
    gt_valid: torch.Tensor,
    candidates: torch.Tensor,
    high: float,
    low: float,
    low_quality: bool,
    zero_iou: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match by boxes gt_boxes [N, G, 4], candidates [T, 4] or [N, T, 4]; see `match`.

    The IoU of all ground truths with all candidates is never stored at once.
    """
    overlaps = box_iou(gt_boxes[:, :CHUNK], candidates)
    best, matched, is_best = _best(overlaps, gt_valid[:, :CHUNK], zero_iou)
    for start in range(CHUNK, gt_boxes.shape[1], CHUNK):
        rows = slice(start, start + CHUNK)
        overlaps = box_iou(gt_boxes[:, rows], candidates)
        later_best, later_matched, is_later_best = _best(overlaps, gt_valid[:, rows], zero_iou)
        better = later_best > best
        best = torch.where(better, later_best, best)
        matched = torch.where(better, later_matched + start, matched)
        is_best = is_best | is_later_best
    return _labels(best, matched, is_best, high, low, low_quality)


def _best(iou, gt_valid, zero_iou):
    """Find the best match of each candidate: (highest IoU, its ground truth, is_best), each [N, T].

    is_best tells whether the IoU is the highest of some ground truth. Without any, the IoU is -1.
    """
    iou = torch.where(gt_valid[..., None], iou, -1)
    # The maximum is the first of equals.
    best, matched = iou.max(dim=1)
    best_of_truth = iou.amax(dim=2, keepdim=True)
    counts = gt_valid[..., None] if zero_iou else best_of_truth > 0
    return best, matched, ((iou == best_of_truth) & counts).any(dim=1)


def _labels(best, matched, is_best, high, low, low_quality):
    labels = torch.where(best >= high, 1, torch.where(best < low, 0, -1))
    return (torch.where(is_best, 1, labels) if low_quality else labels), matched
