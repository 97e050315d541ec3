"""The fully connected layer, forward and backward. Legend: R rows, C inputs, O outputs."""

from reference.activations import relu
from reference.autodiff import Array, primitive


@primitive
def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Compute x [R, C] @ weight [O, C]ᵀ + bias [O] -> [R, O]."""
    return x @ weight.T + bias


def linear_backward(grad_out: Array, x: Array, weight: Array, bias: Array) -> tuple:
    """Compute the gradients with respect to x, weight and bias, from grad_out [R, O]."""
    return grad_out @ weight, grad_out.T @ x, grad_out.sum(axis=0)


def fully_connected(parameters: dict, name: str, x: Array) -> Array:
    """Apply the layer `name` of `parameters`, then ReLU: x [R, C] -> [R, O]."""
    return relu(linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"]))


def flatten(x: Array) -> Array:
    """Reshape [R, C, P, P] -> [R, C P P], in the order C, P, P."""
    rows, channels, height, width = x.shape
    return x.reshape(rows, channels * height * width)


def parameter_shapes(name: str, shape: tuple) -> dict:
    """Return {parameter: shape} of the layer `name` with a weight of that shape, [O, C]."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
