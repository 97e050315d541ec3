"""SGD with momentum and AdamW, weight decay in two groups, gradient clipping, and the learning-rate schedule.

Parameters, gradients and state are dictionaries {name: array}; every function returns new ones and changes nothing in place.
A parameter that has no gradient is frozen: it stays as it is.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np

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


def clip(gradients: dict, max_norm: float) -> tuple[dict, float]:
    """Scale all gradients by one factor so that their joint L2 norm is at most `max_norm` (0: leave them).

    Returns (gradients, norm before). The 1e-6 beside the norm is PyTorch's.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if max_norm > 0:
        scale = min(1.0, max_norm / (norm + 1e-6))
        gradients = {name: g * scale for name, g in gradients.items()}
    return gradients, norm


@dataclass(frozen=True)
class State:
    """What the optimizer remembers: steps taken, running means of the gradients and (AdamW) of their squares."""

    steps: int = 0
    mean: dict = field(default_factory=dict)
    square: dict = field(default_factory=dict)


def step(
    parameters: dict, gradients: dict, state: State, rate: float, optimizer: Optimizer
) -> tuple[dict, State]:
    """One update of every parameter that has a gradient; returns (parameters, state)."""
    update = {"sgd": _sgd, "adamw": _adamw}[optimizer.kind]
    parameters, mean, square = dict(parameters), dict(state.mean), dict(state.square)
    for name, gradient in gradients.items():
        decay = optimizer.norm_weight_decay if is_norm(name) else optimizer.weight_decay
        zero = np.zeros_like(gradient)
        parameters[name], mean[name], square[name] = update(
            parameters[name],
            gradient,
            mean.get(name, zero),
            square.get(name, zero),
            state.steps + 1,
            rate,
            decay,
            optimizer.momentum,
        )
    return parameters, State(state.steps + 1, mean, square)


def _sgd(parameter, gradient, velocity, unused, steps, rate, decay, momentum):
    """v <- m v + (g + d p),  p <- p - r v  [PyTorch's order: the rate multiplies the velocity, not the gradient]."""
    velocity = momentum * velocity + gradient + decay * parameter
    return parameter - rate * velocity, velocity, unused


def _adamw(
    parameter, gradient, mean, square, steps, rate, decay, momentum, beta=0.999, epsilon=1e-8
):
    """Decoupled decay, then the bias-corrected step [Loshchilov & Hutter 2019, algorithm 2]; `momentum` is beta 1."""
    mean = momentum * mean + (1 - momentum) * gradient
    square = beta * square + (1 - beta) * gradient**2
    direction = mean / (1 - momentum**steps) / (np.sqrt(square / (1 - beta**steps)) + epsilon)
    return parameter * (1 - rate * decay) - rate * direction, mean, square
