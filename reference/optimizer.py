"""SGD with momentum and AdamW: two groups of weight decay, clipping, and learning-rate schedule.

Parameters, gradients and state are dictionaries {name: array}; every function returns new ones and
changes nothing in place. A parameter without gradient is frozen: it does not change.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np

from reference.config import Optimizer

_NORM = re.compile(r"(^|\.)(bn\d|downsample\.1|\w+_norm)\.(weight|bias)$")


def is_norm(name: str) -> bool:
    """Test whether the parameter `name` is the scale or shift of a normalisation."""
    return _NORM.search(name) is not None


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


def clip(gradients: dict, max_norm: float) -> tuple[dict, float]:
    """Scale all gradients by one factor to a joint L2 norm of at most `max_norm`; 0: no limit.

    Returns (gradients, norm before). The 1e-6 is PyTorch's.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if max_norm > 0:
        scale = min(1.0, max_norm / (norm + 1e-6))
        gradients = {name: g * scale for name, g in gradients.items()}
    return gradients, norm


@dataclass(frozen=True)
class State:
    """The memory of the optimizer.

    steps   steps taken
    mean    {name: running mean of the gradients}
    square  {name: running mean of their squares}, AdamW only
    """

    steps: int = 0
    mean: dict = field(default_factory=dict)
    square: dict = field(default_factory=dict)


def step(
    parameters: dict, gradients: dict, state: State, rate: float, optimizer: Optimizer
) -> tuple[dict, State]:
    """Update every parameter that has a gradient; return (parameters, state)."""
    parameters, mean, square = dict(parameters), dict(state.mean), dict(state.square)
    count, momentum = state.steps + 1, optimizer.momentum
    for name, gradient in gradients.items():
        decay = optimizer.norm_weight_decay if is_norm(name) else optimizer.weight_decay
        zero = np.zeros_like(gradient)
        m, v = mean.get(name, zero), square.get(name, zero)
        if optimizer.kind == "sgd":
            update = _sgd(parameters[name], gradient, m, rate, decay, momentum)
            parameters[name], mean[name] = update
        else:
            update = _adamw(parameters[name], gradient, m, v, count, rate, decay, momentum)
            parameters[name], mean[name], square[name] = update
    return parameters, State(count, mean, square)


def _sgd(parameter, gradient, velocity, rate, decay, momentum):
    """Step v <- m v + (g + d p),  p <- p - r v: as in PyTorch, the rate multiplies the velocity."""
    velocity = momentum * velocity + gradient + decay * parameter
    return parameter - rate * velocity, velocity


def _adamw(parameter, gradient, mean, square, count, rate, decay, momentum):
    """Decay, then step; `momentum` is beta 1 [AdamW, Loshchilov & Hutter 2019, algorithm 2]."""
    beta, epsilon = 0.999, 1e-8
    mean = momentum * mean + (1 - momentum) * gradient
    square = beta * square + (1 - beta) * gradient**2
    direction = mean / (1 - momentum**count) / (np.sqrt(square / (1 - beta**count)) + epsilon)
    return parameter * (1 - rate * decay) - rate * direction, mean, square
