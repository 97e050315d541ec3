"""Reverse-mode differentiation with a tape: record what a computation calls, then run the backwards in reverse.

A primitive is a plain function on arrays whose backward, written by hand, stands beside it under the name `<primitive>_backward`.
Called with arrays it is that function and nothing else. Called with a Variable among its arguments, it notes the call on the
Variable's tape, and its result is a Variable too. So a model is written once, as inference code:

    tape = Tape()
    weight = tape.variable(np.ones((3, 2)))
    loss = relu(linear(x, weight, 0)).sum()
    tape.backward(loss)
    weight.grad                               # d loss / d weight, [3, 2]

The chain rule is all there is to it: if y = f(x) and G = d loss / d y, then d loss / d x = Jᵀ G with J the Jacobian of f at x. A
backward computes Jᵀ G without ever writing J down. A value used twice gets the sum of both gradients.
"""

import functools

import numpy as np


class Tape:
    """The calls of primitives, in the order in which they happened."""

    def __init__(self):
        self.calls = []

    def variable(self, value):
        """A Variable to differentiate with respect to."""
        return Variable(value, self)

    def backward(self, result, grad=1.0):
        """Fill the gradient of every Variable that the Variable `result` depends on, from its own, `grad`. Once: the tape is used up."""
        result.grad = np.broadcast_to(np.asarray(grad, result.dtype), result.shape)
        while self.calls:
            function, arguments, keywords, output = self.calls.pop()
            if output.grad is None:
                continue  # nothing that `result` depends on
            gradients = backward_of(function)(output.grad, *detached(arguments), **keywords)
            for argument, gradient in zip(arguments, gradients if isinstance(gradients, tuple) else (gradients,), strict=False):
                _accumulate(argument, gradient)


class Variable:
    """An array on a tape: `value`, and after `Tape.backward` its gradient `grad`, of the same shape; None where there is none.

    Beside Variables of the same shape, operators take constants that broadcast to the Variable's own shape.
    """

    __array_ufunc__ = None  # array + variable is ours, too

    def __init__(self, value, tape):
        self.value, self.tape, self.grad = value, tape, None

    shape = property(lambda self: np.shape(self.value))
    dtype = property(lambda self: self.value.dtype)

    def __len__(self):
        return len(self.value)

    def __add__(self, other):
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, constant):
        return add(self, -constant)

    def __truediv__(self, constant):
        return divide(self, constant)

    def __getitem__(self, key):
        return getitem(self, key)

    def reshape(self, *shape):
        return reshape(self, *shape)

    def transpose(self, *axes):
        return transpose(self, *axes)

    def sum(self):
        return total(self)

    def __array_function__(self, function, types, arguments, keywords):
        return concatenate(*arguments, **keywords) if function is np.concatenate else NotImplemented


def detached(x):
    """`x` without the tape: Variables, also those in lists, tuples and dictionaries, become their arrays. No gradient flows through it."""
    if isinstance(x, Variable):
        return x.value
    if isinstance(x, dict):
        return {key: detached(item) for key, item in x.items()}
    return type(x)(map(detached, x)) if isinstance(x, list | tuple) else x


def primitive(function):
    """Mark a function whose positional arguments may be Variables, alone or in lists and dictionaries. Keywords are constants.

    Its backward takes the gradient of the result and then the same arguments. It returns the gradient of the first, or a tuple with
    those of the first few, None for a constant; for a list or dictionary, a list or dictionary of gradients.
    """

    @functools.wraps(function)
    def call(*arguments, **keywords):
        variable = next(_variables(arguments), None)
        if variable is None:
            return function(*arguments, **keywords)
        output = Variable(function(*detached(arguments), **keywords), variable.tape)
        variable.tape.calls.append((function, arguments, keywords, output))
        return output

    return call


def backward_of(function):
    """The backward of a primitive: the function of the same file with that name."""
    return function.__globals__[f"{function.__name__}_backward"]


def _variables(x):
    if isinstance(x, Variable):
        yield x
    elif isinstance(x, dict | list | tuple):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _variables(item)


def _accumulate(x, gradient):
    if isinstance(x, Variable) and gradient is not None:
        x.grad = gradient if x.grad is None else x.grad + gradient
    elif isinstance(gradient, dict | list):
        for key, own in gradient.items() if isinstance(gradient, dict) else enumerate(gradient):
            _accumulate(x[key], own)


# The operators of a Variable. Each is linear, so its backward is its adjoint.


@primitive
def add(a, b):
    return a + b


def add_backward(grad_out, a, b):
    return grad_out, grad_out


@primitive
def divide(x, constant):
    return x / constant


def divide_backward(grad_out, x, constant):
    return grad_out / constant


@primitive
def getitem(x, key):
    return x[key]


def getitem_backward(grad_out, x, key):
    """What was read gets the gradient; what was read twice, the sum."""
    grad = np.zeros_like(x)
    np.add.at(grad, key, grad_out)
    return grad


@primitive
def reshape(x, *shape):
    return x.reshape(*shape)


def reshape_backward(grad_out, x, *shape):
    return grad_out.reshape(x.shape)


@primitive
def transpose(x, *axes):
    return x.transpose(*axes)


def transpose_backward(grad_out, x, *axes):
    return grad_out.transpose(np.argsort(axes))


@primitive
def total(x):
    return x.sum()


def total_backward(grad_out, x):
    return np.full_like(x, grad_out)


@primitive
def concatenate(arrays, axis=0):
    return np.concatenate(arrays, axis)


def concatenate_backward(grad_out, arrays, axis=0):
    ends = np.cumsum([array.shape[axis] for array in arrays])
    return (np.split(grad_out, ends[:-1], axis),)
