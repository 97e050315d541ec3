"""ReLU, sigmoid and softmax (over the last axis); shapes and dtypes are kept."""

import numpy as np

from reference.autodiff import Array, primitive


@primitive
def relu(x: Array) -> Array:
    """Compute max(x, 0)."""
    return np.maximum(x, 0)


def relu_backward(grad_out: Array, x: Array) -> Array:
    """Pass the gradient where x > 0; it is 0 elsewhere, also at the kink."""
    return grad_out * (x > 0)


def sigmoid(x: Array) -> Array:
    """Compute 1 / (1 + exp(-x)) without overflow and without losing small values."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softmax(x: Array) -> Array:
    """Compute exp(x) / sum exp(x)."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    """Compute x - log sum exp(x)."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
