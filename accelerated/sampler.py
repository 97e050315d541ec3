"""Balanced subsampling of candidates by priorities, which two implementations can share.

Shapes are fixed: what is not filled is marked invalid.

Legend: N images, T candidates, B = batch_size slots per image.
"""

import torch


def sample(
    labels: torch.Tensor, priorities: torch.Tensor, batch_size: int, positive_fraction: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose at most `batch_size` candidates, of them at most `positive_fraction` positive.

    labels      [N, T]  > 0 positive, 0 negative, -1 never chosen
    priorities  [N, T]  the smallest are chosen, ties by lower index
    Returns indices [N, B] (positives by rising priority, then negatives, then padding 0),
    is_positive [N, B] and valid [N, B], bool. Negatives fill what positives leave free.
    """
    order, positive, negative = _choose(labels, priorities, batch_size, positive_fraction)
    rank = torch.where(positive, 0, torch.where(negative, 1, 2))
    slots = rank.argsort(dim=1, stable=True)[:, :batch_size]
    slots = torch.nn.functional.pad(slots, (0, batch_size - slots.shape[1]))
    slot = torch.arange(batch_size, device=labels.device)
    positives, negatives = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
    valid = slot < positives + negatives
    return torch.where(valid, order.gather(1, slots), 0), slot < positives, valid


def sampled_mask(
    labels: torch.Tensor, priorities: torch.Tensor, batch_size: int, positive_fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the same choice as masks: (positive [N, T], negative [N, T]) bool."""
    order, positive, negative = _choose(labels, priorities, batch_size, positive_fraction)
    empty = torch.zeros_like(positive)
    return empty.scatter(1, order, positive), empty.scatter(1, order, negative)


def _choose(labels, priorities, batch_size, positive_fraction):
    """Sort the candidates by priority and choose: order, positive, negative, each [N, T]."""
    order = priorities.argsort(dim=1, stable=True)
    ordered = labels.gather(1, order)
    positive, negative = ordered > 0, ordered == 0
    positive = positive & (positive.cumsum(1) <= int(batch_size * positive_fraction))
    negative = negative & (negative.cumsum(1) <= batch_size - positive.sum(1, keepdim=True))
    return order, positive, negative
