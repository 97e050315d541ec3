"""Balanced subsampling of candidates by priorities, which two implementations can share.

Shapes are fixed: what is not filled is marked invalid.

Legend: N images, T candidates, B = batch_size slots per image.
"""

import torch

from accelerated import nms


def sample(
    labels: torch.Tensor, priorities: torch.Tensor, batch_size: int, positive_fraction: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose at most `batch_size` candidates, of them at most `positive_fraction` positive.

    labels      [N, T]  > 0 positive, 0 negative, -1 never chosen
    priorities  [N, T]  the smallest are chosen, ties by lower index
    Returns indices [N, B] (positives by rising priority, then negatives, then padding 0),
    is_positive [N, B] and valid [N, B], bool. Negatives fill what positives leave free.
    """
    positive, positives, negative, negatives = _choose(
        labels, priorities, batch_size, positive_fraction
    )
    slot = torch.arange(batch_size, device=labels.device).expand(len(labels), -1)
    is_positive, valid = slot < positives, slot < positives + negatives
    # The slot among the positives, or among the negatives.
    own = torch.where(is_positive, slot, slot - positives + positive.shape[1])
    own = torch.where(valid, own, 0)
    index = torch.cat([positive, negative], 1).gather(1, own)
    return torch.where(valid, index, 0), is_positive, valid


def sampled_mask(
    labels: torch.Tensor, priorities: torch.Tensor, batch_size: int, positive_fraction: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the same choice as masks: (positive [N, T], negative [N, T]) bool."""
    positive, positives, negative, negatives = _choose(
        labels, priorities, batch_size, positive_fraction
    )
    masks = []
    for index, count in ((positive, positives), (negative, negatives)):
        chosen = torch.arange(index.shape[1], device=labels.device) < count
        masks.append(torch.zeros_like(labels, dtype=torch.bool).scatter(1, index, chosen))
    return masks[0], masks[1]


def _choose(labels, priorities, batch_size, positive_fraction):
    """Return indices [N, K] of positives by rising priority, how many count [N, 1]; and negatives.

    As many of the indices as count are chosen, the others are arbitrary.
    """
    keys = nms.keys(priorities, descending=False)
    positive, positives = _first(keys, labels > 0, int(batch_size * positive_fraction))
    negative, negatives = _first(keys, labels == 0, batch_size)
    return positive, positives, negative, negatives.minimum(batch_size - positives)


def _first(keys, wanted, limit):
    """Return indices [N, K], first the wanted candidates of highest key, and their count [N, 1]."""
    found = keys.masked_fill(~wanted, nms.LOWEST).topk(min(limit, keys.shape[1]), dim=1)
    return found.indices, (found.values > nms.LOWEST).sum(1, keepdim=True)
