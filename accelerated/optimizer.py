"""SGD with momentum and AdamW, weight decay in two groups, gradient clipping, and the learning-rate schedule.

`build` makes a fused torch optimizer; `step` is one update of it that never waits for the device, and that leaves weights and
state alone, on the device, while `failed` is set.
"""

import math
import re

import torch
from torch import Tensor, nn

from reference.config import Optimizer

_NORM = re.compile(r"(^|\.)(bn\d|downsample\.1|\w+_norm)\.(weight|bias)$")


def is_norm(name: str) -> bool:
    """Whether a parameter of that name is the scale or shift of a normalisation."""
    return _NORM.search(name) is not None


def learning_rate(optimizer: Optimizer, iteration: int, iterations: int, batch_size: int) -> float:
    """Rate of step `iteration` (from 0) out of `iterations`, for batches of `batch_size` images.

    Linear in the batch size [Goyal et al. 2017, arXiv 1706.02677]: `optimizer.learning_rate` belongs to `optimizer.batch_size`.
    Warm-up rises linearly from `warmup_factor` and multiplies the schedule.
    """
    rate = optimizer.learning_rate * batch_size / optimizer.batch_size
    if iteration < optimizer.warmup_iterations:
        done = iteration / optimizer.warmup_iterations
        rate *= optimizer.warmup_factor * (1 - done) + done
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * iteration / iterations)) / 2
    return rate * optimizer.gamma ** sum(
        iteration >= round(step * iterations) for step in optimizer.steps
    )


def build(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer of every parameter that takes a gradient; its groups carry the parameters' names."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [(name, p) for name, p in trained if not is_norm(name)],
            "weight_decay": optimizer.weight_decay,
        },
        {
            "params": [(name, p) for name, p in trained if is_norm(name)],
            "weight_decay": optimizer.norm_weight_decay,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer.kind == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=optimizer.learning_rate,
            betas=(optimizer.momentum, 0.999),
            eps=1e-8,
            fused=True,
        )
    return torch.optim.SGD(
        groups, lr=optimizer.learning_rate, momentum=optimizer.momentum, fused=True
    )


def step(
    optimizer: torch.optim.Optimizer, rate: float, max_norm: float, failed: Tensor | None = None
) -> Tensor:
    """Clip the gradients to the joint norm `max_norm` (0: leave them) and update; returns their norm before, on the device.

    failed  [] float, 1 once a loss was not finite; a gradient norm that is not finite sets it too. While it is set nothing
            is updated, so the weights stay those that led to the failure.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    if failed is not None:
        failed.copy_(torch.maximum(failed, (~norm.isfinite()).to(failed.dtype)))
        optimizer.found_inf = failed  # what fused optimizers call the switch that skips an update
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return norm
