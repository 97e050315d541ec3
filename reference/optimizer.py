"""SGD with momentum and AdamW: two groups of weight decay, clipping, and learning-rate schedule.

Parameters, gradients and state are dictionaries {name: array}; every function returns new ones and
changes nothing in place. A parameter without gradient is frozen: it does not change.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np

from reference.config import Optimizer


def is_norm(name: str) -> bool:
    """Test whether the parameter `name` is the scale or shift of a normalisation."""
    return re.search(r"(^|\.)(bn\d|downsample\.1|\w+_norm)\.(weight|bias)$", name) is not None


def learning_rate(optimizer: Optimizer, iteration: int, iterations: int, batch_size: int) -> float:
    """Compute the rate of step `iteration` (from 0) of `iterations`, for `batch_size` images.

    It is linear in the batch size [Linear scaling, Goyal et al. 2017]. Warm-up rises linearly from
    `warmup_factor` and multiplies the schedule.
    """
    rate = optimizer.learning_rate * batch_size / optimizer.batch_size
    if iteration < optimizer.warmup_iterations:
        done = iteration / optimizer.warmup_iterations
        rate *= optimizer.warmup_factor * (1 - done) + done
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * iteration / iterations)) / 2
    passed = [step for step in optimizer.steps if iteration >= round(step * iterations)]
    return rate * optimizer.gamma ** len(passed)


def clip(gradients: dict, max_norm: float) -> tuple[dict, float]:
    """Return the gradients, scaled to a joint norm of at most `max_norm` if not 0, and the norm."""
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if max_norm > 0:
        # As in PyTorch.
        scale = min(1.0, max_norm / (norm + 1e-6))
        gradients = {name: g * scale for name, g in gradients.items()}
    return gradients, norm


@dataclass(frozen=True)
class State:
    """The steps taken and, by name, running means of the gradients and (AdamW) their squares."""

    steps: int = 0
    mean: dict = field(default_factory=dict)
    square: dict = field(default_factory=dict)


def step(
    parameters: dict, gradients: dict, state: State, rate: float, optimizer: Optimizer
) -> tuple[dict, State]:
    """Update every parameter that has a gradient; return (parameters, state).

    "sgd" is PyTorch's, where the rate multiplies the velocity. "adamw" is [AdamW, Loshchilov &
    Hutter 2019, algorithm 2] with the momentum as beta 1.
    """
    parameters, mean, square = dict(parameters), dict(state.mean), dict(state.square)
    count, momentum, beta, epsilon = state.steps + 1, optimizer.momentum, 0.999, 1e-8
    for name, g in gradients.items():
        p, m, v = parameters[name], mean.get(name, 0.0), square.get(name, 0.0)
        decay = optimizer.norm_weight_decay if is_norm(name) else optimizer.weight_decay
        if optimizer.kind == "sgd":
            mean[name] = m = momentum * m + g + decay * p
            parameters[name] = p - rate * m
        else:
            mean[name] = m = momentum * m + (1 - momentum) * g
            square[name] = v = beta * v + (1 - beta) * g**2
            direction = m / (1 - momentum**count) / (np.sqrt(v / (1 - beta**count)) + epsilon)
            parameters[name] = p * (1 - rate * decay) - rate * direction
    return parameters, State(count, mean, square)
