"""The fully connected layer, forward and backward."""

from reference.autodiff import primitive


@primitive
def linear(x, weight, bias):
    """x [R, C] @ weight [O, C]ᵀ + bias [O] -> [R, O]."""
    return x @ weight.T + bias


def linear_backward(grad_out, x, weight, bias):
    """Gradients with respect to x, weight and bias, from grad_out [R, O]."""
    return grad_out @ weight, grad_out.T @ x, grad_out.sum(axis=0)
