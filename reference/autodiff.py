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
import inspect

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
            backward, arguments, keywords, output = self.calls.pop()
            if output.grad is not None:  # else `result` does not depend on it
                gradients = backward(output.grad, *detached(arguments), **keywords)
                _accumulate(arguments, gradients if isinstance(gradients, tuple) else (gradients,))


def primitive(function, backward=None):
    """Mark a function whose positional arguments may be Variables, alone or in lists and dictionaries. Keywords are constants.

    Its backward, if not given the one of its name, takes the gradient of the result and then the same arguments. It returns the gradient
    of the first, or a tuple with those of the first few, None for a constant; for a list or dictionary, a list or dictionary of gradients.
    A call raises ValueError for Variables of two tapes, `Tape.backward` for a gradient that has not the shape of its Variable.
    """

    @functools.wraps(function)
    def call(*arguments, **keywords):
        tapes = {variable.tape for variable in _variables(arguments)}
        if not tapes:
            return function(*arguments, **keywords)
        if len(tapes) > 1:
            raise ValueError("a call with Variables of two tapes")
        [tape] = tapes
        output = Variable(function(*detached(arguments), **keywords), tape)
        tape.calls.append((backward or backward_of(function), arguments, keywords, output))
        return output

    return call


def backward_of(function):
    """The backward of a primitive: the function of the same file with that name."""
    return inspect.unwrap(function).__globals__[f"{function.__name__}_backward"]


def detached(x):
    """`x` without the tape: Variables, also those in lists, tuples and dictionaries, become their arrays. No gradient flows through it."""
    if isinstance(x, Variable):
        return x.value
    if isinstance(x, dict):
        return {key: detached(item) for key, item in x.items()}
    return type(x)(map(detached, x)) if isinstance(x, list | tuple) else x


def _variables(x):
    if isinstance(x, Variable):
        yield x
    for _, item in _items(x):
        yield from _variables(item)


def _accumulate(x, gradient):
    """Give the Variables in `x` what stands in their place in `gradient`."""
    if isinstance(x, Variable):
        if np.shape(gradient) != x.shape:
            raise ValueError(
                f"a gradient of shape {np.shape(gradient)} for a Variable of shape {x.shape}"
            )
        x.grad = gradient if x.grad is None else x.grad + gradient
    for key, item in _items(gradient):
        if item is not None:
            _accumulate(x[key], item)


def _items(x):
    return x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list | tuple) else ()


@primitive
def getitem(x, key):
    return x[key]


def getitem_backward(grad_out, x, key):
    """What was read gets the gradient; what was read twice, the sum."""
    grad = np.zeros_like(x)
    np.add.at(grad, key, grad_out)
    return grad


@primitive
def concatenate(arrays, axis=0):
    return np.concatenate(arrays, axis)


def concatenate_backward(grad_out, arrays, axis=0):
    return np.split(grad_out, np.cumsum([array.shape[axis] for array in arrays])[:-1], axis)


class Variable:
    """An array on a tape: `value`, and after `Tape.backward` its gradient `grad`, of the same shape; None where there is none.

    Its operators are primitives, the backward behind the forward: being linear, its adjoint. The other operand of a sum or
    difference is a Variable of the same shape, or a constant that broadcasts to it.
    """

    __array_ufunc__ = None  # array + variable is ours, too

    def __init__(self, value, tape):
        self.value, self.tape, self.grad = value, tape, None

    shape = property(lambda self: np.shape(self.value))
    dtype = property(lambda self: self.value.dtype)
    __add__ = __radd__ = primitive(lambda a, b: a + b, lambda grad, a, b: (grad, grad))
    __sub__ = primitive(lambda a, b: a - b, lambda grad, a, b: (grad, -grad))
    __truediv__ = primitive(
        lambda x, constant: x / constant, lambda grad, x, constant: grad / constant
    )
    __getitem__ = getitem
    reshape = primitive(
        lambda x, *shape: x.reshape(*shape), lambda grad, x, *shape: grad.reshape(x.shape)
    )
    transpose = primitive(
        lambda x, *axes: x.transpose(*axes), lambda grad, x, *axes: grad.transpose(np.argsort(axes))
    )
    sum = primitive(lambda x: x.sum(), lambda grad, x: np.full_like(x, grad))

    def __len__(self):
        return len(self.value)

    def __array_function__(self, function, types, arguments, keywords):
        return concatenate(*arguments, **keywords) if function is np.concatenate else NotImplemented
