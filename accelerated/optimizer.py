"""SGD with momentum and AdamW: two groups of weight decay, clipping, and learning-rate schedule.

`build` makes a fused torch optimizer. `step` updates it once without waiting for the device; while
`failed` is set, it leaves weights and state as they are. The learning rate is a tensor, so that a
captured `update` reads the rate of each step.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from reference.config import Optimizer


def is_norm(name: str) -> bool:
    """Test whether the parameter `name` is the scale or shift of a normalisation."""
    return re.search(r"(^|\.)(bn\d|downsample\.1|\w+_norm)\.(weight|bias)$", name) is not None


def learning_rate(optimizer: Optimizer, iteration: int, iterations: int, batch_size: int) -> float:
    """Compute the rate of step `iteration` (from 0) of `iterations`, for `batch_size` images.

    It is linear in the batch size [Goyal et al. 2017]: `optimizer.learning_rate` belongs to
    `optimizer.batch_size`. Warm-up rises linearly from `warmup_factor` and multiplies the schedule.
    """
    rate = optimizer.learning_rate * batch_size / optimizer.batch_size
    if iteration < optimizer.warmup_iterations:
        done = iteration / optimizer.warmup_iterations
        rate *= optimizer.warmup_factor * (1 - done) + done
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * iteration / iterations)) / 2
    passed = [step for step in optimizer.steps if iteration >= round(step * iterations)]
    return rate * optimizer.gamma ** len(passed)


def build(
    model: nn.Module, optimizer: Optimizer, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Make the torch optimizer of every parameter that requires a gradient.

    Its groups carry the parameters' names and the factor of their rate: by name, 1 without one.
    """
    groups, factors, rate = {}, factors or {}, optimizer.learning_rate
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, p in sorted(trained, key=lambda pair: is_norm(pair[0])):
        decay = optimizer.norm_weight_decay if is_norm(name) else optimizer.weight_decay
        group = {"weight_decay": decay, "factor": factors.get(name, 1.0), "params": []}
        group = groups.setdefault((is_norm(name), group["factor"]), group)
        group["params"].append((name, p))
        group.setdefault("lr", _rate(rate, p))
    groups, momentum = list(groups.values()), optimizer.momentum
    if optimizer.kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), eps=1e-8, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)


def _rate(value, parameter):
    """Return a tensor on the parameter's device: float64 on a CPU, where updates read it so."""
    if not parameter.is_cuda:
        return torch.tensor(value, dtype=torch.float64)
    # Fused updates on a GPU read a float32 tensor. Weights in float64, which serve comparisons
    # only, keep an exact number.
    return (
        value if parameter.dtype == torch.float64 else torch.tensor(value, device=parameter.device)
    )


def step(
    optimizer: torch.optim.Optimizer,
    rate: float,
    max_norm: float,
    failed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Set the learning rate and do `update`."""
    set_rate(optimizer, rate)
    return update(optimizer, max_norm, failed)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, times their factor, in place where it is a tensor."""
    for group in optimizer.param_groups:
        own = rate * group["factor"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def update(
    optimizer: torch.optim.Optimizer, max_norm: float, failed: torch.Tensor | None = None
) -> torch.Tensor:
    """Clip the gradients to the joint norm `max_norm` (0: no limit) and update the parameters.

    failed  [] float, 1 once a loss was not finite; a gradient norm that is not finite sets it too.
            While it is set nothing is updated, so that the weights that led to the failure remain
    Returns the norm before clipping, on the device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    if failed is not None:
        failed.copy_(torch.maximum(failed, (~norm.isfinite()).to(failed.dtype)))
        # The name by which fused optimizers know the switch that skips an update.
        optimizer.found_inf = failed  # pyright: ignore[reportAttributeAccessIssue]
    for group in optimizer.param_groups:
        # AdamW refuses to be captured without it.
        group["capturable"] = norm.is_cuda and torch.cuda.is_current_stream_capturing()
    optimizer.step()
    return norm
