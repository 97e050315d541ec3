"""Where a step that was not finite went wrong: it is repeated, and its stages are looked through in order."""

import torch
from torch import Tensor

from accelerated.structures import Stages


class NotFiniteError(RuntimeError):
    """A loss, gradient or weight became NaN or infinite."""


def first_failure(model, losses_of, batch) -> str:
    """Name of the first stage that is not finite: a weight, an intermediate of the forward pass, a loss or a gradient.

    losses_of(record) repeats the forward pass of the failed step with the same weights, batch and priorities, and fills `record`.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"weight {name}"
    record = Stages()
    losses = losses_of(record)
    for stage, value in ({"images": batch.images} | record.computed()).items():
        if not _finite(value):
            return stage
    for name, loss in losses.items():
        if not _finite(loss):
            return f"loss {name}"
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in reversed(
        list(model.named_parameters())
    ):  # backward runs from the heads to the backbone
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"gradient of {name}"
    return "norm of the gradients"


def _finite(value) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        value = value.values()
    return all(_finite(v) for v in value)
