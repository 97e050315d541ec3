"""The fully connected layer."""


def linear(x, weight, bias):
    """x [R, C] @ weight [O, C]ᵀ + bias [O] -> [R, O]."""
    return x @ weight.T + bias
