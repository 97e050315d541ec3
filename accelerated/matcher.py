"""Which ground truth a candidate (anchor or proposal) belongs to, and whether it is foreground, background or ignored.

N images, G ground truths (padded, `gt_valid`), T candidates.
"""

import torch

from accelerated import boxes as box_ops

CHUNK = 8  # ground truths whose IoU with all candidates is held at a time


def match(iou, gt_valid, high, low, low_quality, zero_iou=True):
    """Labels and matches from overlaps [Faster R-CNN §3.1.2].

    iou [N, G, T], gt_valid [N, G] bool: a padded ground truth matches nothing.
    Returns labels [N, T] int64: 1 foreground (best IoU >= high), 0 background (best IoU < low), -1 ignored (between);
    and matched [N, T]: the ground truth of highest IoU, the first of equals, whatever the label (0 where there is none).

    low_quality: the candidates whose IoU equals the maximum of some ground truth (all of them, on ties) are foreground too,
    and keep their own match. zero_iou: also where that maximum is 0, which makes every candidate that misses it foreground.
    Without ground truth everything is background.
    """
    return _labels(*_best(iou, gt_valid, zero_iou), high, low, low_quality)


def match_boxes(gt_boxes, gt_valid, candidates, high, low, low_quality, zero_iou=True):
    """`match` from boxes: gt_boxes [N, G, 4], candidates [T, 4] or [N, T, 4]; never holds the IoU of all G with all T."""
    parts = []
    for start in range(0, gt_boxes.shape[1], CHUNK):
        rows = slice(start, start + CHUNK)
        best, matched, is_best = _best(
            box_ops.iou(gt_boxes[:, rows], candidates), gt_valid[:, rows], zero_iou
        )
        parts.append((best, matched + start, is_best))
        if len(parts) == 2:
            parts = [_better(*parts)]
    return _labels(*parts[0], high, low, low_quality)


def _best(iou, gt_valid, zero_iou):
    """Per candidate: highest IoU (-1 without ground truth), whose it is, whether it is the highest of some ground truth."""
    iou = torch.where(gt_valid[..., None], iou, -1)
    best, matched = iou.max(dim=1)  # the first of equals
    best_of_truth = iou.amax(dim=2, keepdim=True)
    counts = gt_valid[..., None] if zero_iou else best_of_truth > 0
    return best, matched, ((iou == best_of_truth) & counts).any(dim=1)


def _better(first, second):
    """Two results of `_best` for consecutive ground truths -> one."""
    later = second[0] > first[0]
    return (
        torch.where(later, second[0], first[0]),
        torch.where(later, second[1], first[1]),
        first[2] | second[2],
    )


def _labels(best, matched, is_best, high, low, low_quality):
    labels = torch.where(best >= high, 1, torch.where(best < low, 0, -1))
    return (torch.where(is_best, 1, labels) if low_quality else labels), matched
