"""Elementwise losses, from which each stage makes its own (SPEC §7, §8, §10).

Legend: R rows, K columns.
"""

import numpy as np

from reference.activations import log_softmax, sigmoid, softmax
from reference.autodiff import primitive
from reference.structures import Array


@primitive
def smooth_l1(difference: Array, beta: float) -> Array:
    """Return 0.5 d² / beta where |d| < beta and |d| - 0.5 beta elsewhere; |d| for beta < 1e-5."""
    d = np.abs(difference)
    if beta < 1e-5:
        return d
    return np.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta)


def smooth_l1_backward(grad_out: Array, difference: Array, beta: float) -> Array:
    """Return d / beta where |d| < beta and the sign of d elsewhere; 0 at the kink of plain L1."""
    sign = np.sign(difference)
    if beta < 1e-5:
        return grad_out * sign
    return grad_out * np.where(np.abs(difference) < beta, difference / beta, sign)


@primitive
def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return -(t ln σ(x) + (1 - t) ln(1 - σ(x))) for each entry, without overflow for any x."""
    return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


def binary_cross_entropy_backward(grad_out: Array, logits: Array, targets: Array) -> Array:
    """Return σ(x) - t, as d ln σ(x) / dx = 1 - σ(x) and d ln(1 - σ(x)) / dx = -σ(x).

    Targets are constants.
    """
    return grad_out * (sigmoid(logits) - targets)


@primitive
def cross_entropy(logits: Array, columns: Array) -> Array:
    """Return -ln softmax(logits)[column] of each row: logits [R, K], columns [R] -> [R]."""
    return -log_softmax(logits)[np.arange(len(columns)), columns]


def cross_entropy_backward(grad_out: Array, logits: Array, columns: Array) -> Array:
    """Return softmax(logits) - one_hot(column): -ln softmax(x)[c] = ln(sum of exp(x_k)) - x_c."""
    grad = softmax(logits)
    grad[np.arange(len(columns)), columns] -= 1
    return grad * grad_out[:, None]


@primitive
def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return -sum over k of t_k ln softmax(logits)_k of each row -> [R].

    logits [R, K]; each row of targets [R, K] is a distribution.
    """
    return -(targets * log_softmax(logits)).sum(axis=-1)


def soft_cross_entropy_backward(grad_out: Array, logits: Array, targets: Array) -> Array:
    """Return softmax(logits) - targets, as in `cross_entropy`. Targets are constants."""
    return (softmax(logits) - targets) * grad_out[:, None]
