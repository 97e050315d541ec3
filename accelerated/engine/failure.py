"""Find the first stage with NaN or infinity by rerunning the failed step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from accelerated.structures import Batch, Stages

# What is left where all values of a process are finite.
NORM = "norm of the gradients"


class NotFiniteError(RuntimeError):
    """A loss, gradient or weight is NaN or infinite."""


def first_failure(
    model: nn.Module, losses_of: Callable[[Stages], dict[str, torch.Tensor]], batch: Batch
) -> str:
    """Name the first non-finite value: a weight, the images, a stage, a loss or a gradient.

    losses_of(record) repeats the forward pass of the failed step, with the same weights, batch and
    priorities, and fills the Stages `record`.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"weight {name}"
    if not _is_finite(batch.images):
        return "images"
    record = Stages()
    losses = losses_of(record)
    for name, value in record.computed().items():
        if not _is_finite(value):
            return name
    for name, loss in losses.items():
        if not _is_finite(loss):
            return f"loss {name}"
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    # The backward pass runs from the heads to the backbone.
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return f"gradient of {name}"
    return NORM


def _is_finite(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    values = value.values() if isinstance(value, dict) else value
    return all(_is_finite(item) for item in values)
