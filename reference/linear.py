"""The fully connected layer, forward and backward."""

import math

from reference.activations import relu
from reference.autodiff import primitive


@primitive
def linear(x, weight, bias):
    """x [R, C] @ weight [O, C]ᵀ + bias [O] -> [R, O]."""
    return x @ weight.T + bias


def linear_backward(grad_out, x, weight, bias):
    """Gradients with respect to x, weight and bias, from grad_out [R, O]."""
    return grad_out @ weight, grad_out.T @ x, grad_out.sum(axis=0)


def flatten(x):
    """[R, C, P, P] -> [R, C P P], in the order C, P, P."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def fully_connected(parameters, name, x):
    """Apply the layer `name` of `parameters`, then ReLU: x [R, C] -> [R, O]."""
    return relu(linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))


def parameter_shapes(name, shape):
    """{parameter: shape} of a layer whose weight has that shape, [O, C]."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
