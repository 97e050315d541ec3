"""Elementwise losses, from which each stage makes its own (SPEC §7, §8, §10).

Legend: R rows, K columns.
"""

import torch
from torch.nn import functional as F


def smooth_l1(difference: torch.Tensor, beta: float) -> torch.Tensor:
    """Return 0.5 d² / beta where |d| < beta and |d| - 0.5 beta elsewhere; |d| for beta < 1e-5."""
    if beta < 1e-5:
        return difference.abs()
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -(t ln σ(x) + (1 - t) ln(1 - σ(x))) for each entry, without overflow for any x."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def cross_entropy(logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return -ln softmax(logits)[column] of each row: logits [R, K], columns [R] -> [R]."""
    return F.cross_entropy(logits, columns, reduction="none")


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Cast to at least float32, to undo autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
