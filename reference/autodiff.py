"""Reverse-mode differentiation with a tape: record calls, then run their backwards in reverse.

A primitive is a plain function of arrays whose backward, derived by hand, stands next to it under
the name `<primitive>_backward`. Called with a Variable among its arguments, it also records the
call on the Variable's tape, and its result is a Variable too. So a model is written once, as
inference code, and can still be trained:

    tape = Tape()
    weight = tape.variable(np.ones((3, 2)))
    loss = relu(linear(x, weight, 0)).sum()
    tape.backward(loss)
    weight.grad                               # d loss / d weight, [3, 2]

By the chain rule, if y = f(x) and G = d loss / d y, then d loss / d x = Jᵀ G, where J is the
Jacobian of f at x. A backward computes Jᵀ G without ever forming J. A value that is used twice
receives the sum of both gradients.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

# To a type checker, a Variable is the array in whose place it stands.
Array = np.ndarray
Function = TypeVar("Function", bound=Callable)


class Tape:
    """The calls of primitives, in the order in which they happened."""

    def __init__(self) -> None:
        self.calls = []

    def variable(self, value: Array) -> "Variable":
        """Make a Variable to differentiate with respect to."""
        return Variable(value, self)

    def names(self) -> list[str]:
        """Return the names of the primitives that were called, in order; empty after `backward`."""
        return [name for name, *_ in self.calls]

    def backward(self, result: "Variable", grad: Array | float = 1.0) -> None:
        """Set `.grad` on every Variable that `result` depends on. A tape can be used once.

        grad  gradient of `result`: of its shape, or one number for all entries
        Raises ValueError if a backward returns a gradient of another shape than its Variable's.
        """
        result.grad = np.broadcast_to(np.asarray(grad, result.dtype), result.shape)
        while self.calls:
            _, backward, arguments, keywords, output = self.calls.pop()
            # Without a gradient, `result` does not depend on this output.
            if output.grad is not None:
                grads = backward(output.grad, *detached(arguments), **keywords)
                _accumulate(arguments, grads if isinstance(grads, tuple) else (grads,))


def primitive(function: Function, backward: Callable | None = None) -> Function:
    """Let the positional arguments of a function be Variables, alone or in lists and dictionaries.

    Keyword arguments are constants. The backward, by default the one with its name, takes the
    gradient of the result and then the same arguments. It returns the gradient of the first
    argument, or a tuple of those of the first few; None for a constant; for a list or dictionary,
    a list or dictionary of gradients. A call raises ValueError for Variables of two tapes.
    """

    @functools.wraps(function)
    def call(*arguments, **keywords):
        tapes = {variable.tape for variable, _ in _pairs(arguments, arguments)}
        if not tapes:
            return function(*arguments, **keywords)
        if len(tapes) > 1:
            raise ValueError(f"{function.__name__}: the arguments are Variables of two tapes")
        [tape] = tapes
        output = Variable(function(*detached(arguments), **keywords), tape)
        own = backward or backward_of(function)
        tape.calls.append((function.__name__, own, arguments, keywords, output))
        return output

    return cast(Function, call)


def backward_of(function: Callable) -> Callable:
    """Return the backward of a primitive: the function of that name in the same file."""
    function = inspect.unwrap(function)
    return function.__globals__[f"{function.__name__}_backward"]


def detached(x: Any) -> Any:
    """Replace Variables by their arrays, also in lists and dictionaries; no gradient flows on."""
    if isinstance(x, Variable):
        return x.value
    if isinstance(x, dict):
        return {key: detached(item) for key, item in x.items()}
    return type(x)(map(detached, x)) if isinstance(x, list | tuple) else x


def _pairs(x, other):
    """List the Variables in `x`, each with what stands in its position in `other`."""
    if isinstance(x, Variable):
        return [(x, other)]
    if isinstance(other, dict):
        return [pair for key in other for pair in _pairs(x[key], other[key])]
    if isinstance(other, list | tuple):
        return [pair for item in zip(x, other) for pair in _pairs(*item)]
    return []


def _accumulate(x, gradient):
    """Add to the gradient of each Variable in `x` the corresponding part of `gradient`."""
    for variable, part in _pairs(x, gradient):
        if part is not None:
            if np.shape(part) != variable.shape:
                shapes = f"shape {np.shape(part)} for a Variable of shape {variable.shape}"
                raise ValueError(f"gradient of {shapes}; only constants are broadcast")
            variable.grad = part if variable.grad is None else variable.grad + part


# The operators of a Variable. One of two operands may be a constant that broadcasts to the other.


@primitive
def add(a: Any, b: Any) -> Any:
    return a + b


def add_backward(grad_out: Any, a: Any, b: Any) -> tuple:
    return grad_out, grad_out


@primitive
def multiply(a: Any, b: Any) -> Any:
    return a * b


def multiply_backward(grad_out: Any, a: Any, b: Any) -> tuple:
    return grad_out * b, grad_out * a


@primitive
def divide(a: Any, b: Any) -> Any:
    return a / b


def divide_backward(grad_out: Any, a: Any, b: Any) -> tuple:
    return grad_out / b, -grad_out * a / b**2


@primitive
def reshape(x: Any, *shape: int) -> Any:
    return x.reshape(*shape)


def reshape_backward(grad_out: Any, x: Any, *shape: int) -> Any:
    return grad_out.reshape(x.shape)


@primitive
def transpose(x: Any, *axes: int) -> Any:
    return x.transpose(*axes)


def transpose_backward(grad_out: Any, x: Any, *axes: int) -> Any:
    return grad_out.transpose(np.argsort(axes))


@primitive
def total(x: Any) -> Any:
    return x.sum()


def total_backward(grad_out: Any, x: Any) -> Any:
    return np.full_like(x, grad_out)


@primitive
def getitem(x: Array, key: Any) -> Array:
    return x[key]


def getitem_backward(grad_out: Array, x: Array, key: Any) -> Array:
    """Scatter the gradient back; entries read twice receive the sum."""
    grad = np.zeros_like(x)
    np.add.at(grad, key, grad_out)
    return grad


@primitive
def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    return np.concatenate(arrays, axis)


def concatenate_backward(grad_out: Array, arrays: Sequence[Array], axis: int = 0) -> list[Array]:
    return np.split(grad_out, np.cumsum([array.shape[axis] for array in arrays])[:-1], axis)


class Variable:
    """An array on a tape: its `value` and, after `Tape.backward`, its `grad` or None."""

    # This makes `array + variable` call __radd__ of the Variable.
    __array_ufunc__ = None

    def __init__(self, value: Any, tape: Tape) -> None:
        self.value, self.shape, self.dtype = value, value.shape, value.dtype
        self.tape = tape
        self.grad: Array | None = None

    def __repr__(self) -> str:
        grad = None if self.grad is None else "set"
        return f"Variable(shape={self.shape}, dtype={self.dtype}, grad={grad})"

    def __len__(self) -> int:
        return len(self.value)

    __add__ = __radd__ = add
    __mul__ = __rmul__ = multiply
    __truediv__ = divide
    __getitem__ = getitem
    reshape, transpose, sum = reshape, transpose, total

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return other + -self

    def __rtruediv__(self, other: Any) -> Any:
        return divide(other, self)

    def mean(self) -> Any:
        return self.sum() / self.value.size

    def __array_function__(self, function, types, arguments, keywords):
        return concatenate(*arguments, **keywords) if function is np.concatenate else NotImplemented
