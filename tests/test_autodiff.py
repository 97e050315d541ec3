"""The tape: what it records, what it leaves alone, and the operators of its Variables."""

import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import away, check_backward, value_and_gradients
from support.strategies import arrays

from accelerated.verify.equality import REDUCTION, assert_close, assert_equal
from reference import autodiff
from reference.activations import relu
from reference.autodiff import Tape, Variable, backward_of, detached, primitive
from reference.linear import linear


@primitive
def weighted_sum(terms, weights, *, scale=1.0):
    """The sum of terms[k] * weights[k], from two lists or two dictionaries."""
    keys = terms if isinstance(terms, dict) else range(len(terms))
    return scale * sum(terms[key] * weights[key] for key in keys)


def weighted_sum_backward(grad_out, terms, weights, *, scale=1.0):
    if isinstance(terms, dict):
        return tuple(
            {key: scale * grad_out * x for key, x in other.items()} for other in (weights, terms)
        )
    return tuple([scale * grad_out * x for x in other] for other in (weights, terms))


def layer(x, weight, bias):
    return relu(linear(x, weight, bias))


# ---- what is recorded


def test_arrays_stay_arrays_and_nothing_is_recorded(rng):
    x, weight, bias = (
        rng.standard_normal((5, 3)),
        rng.standard_normal((2, 3)),
        rng.standard_normal(2),
    )
    tape = Tape()
    tape.variable(weight)
    out = layer(x, weight, bias)
    assert type(out) is np.ndarray and tape.calls == []
    taped = layer(x, tape.variable(weight), bias)
    assert isinstance(taped, Variable) and len(tape.calls) == 2
    assert_equal(taped.value, out)
    assert_equal(layer(x, weight, tape.variable(bias)).value, out)


def test_the_example_of_the_docstring(rng):
    x = rng.standard_normal((4, 2)) + 1
    tape = Tape()
    weight = tape.variable(np.ones((3, 2)))
    tape.backward(relu(linear(x, weight, 0)).sum())
    assert_close(weight.grad, np.tile(x[x.sum(1) > 0].sum(0), (3, 1)), REDUCTION["float64"])
    assert tape.calls == []


def test_the_gradient_starts_from_the_one_given(rng):
    x, grad_out = rng.standard_normal((2, 3, 4))
    tape = Tape()
    variable = tape.variable(x)
    out = variable / 2
    tape.backward(out, grad_out)
    assert_equal(variable.grad, grad_out / 2)
    assert_equal(out.grad, grad_out)


def test_a_value_used_twice_gets_the_sum():
    tape = Tape()
    x = tape.variable(np.array([1.0, -2.0, 3.0]))
    y = relu(x)
    z = y / 2
    tape.backward(y + z + x + x, np.array([1.0, 10.0, 100.0]))
    assert_equal(z.grad, [1, 10, 100])
    assert_equal(y.grad, [1.5, 15, 150])
    assert_equal(x.grad, [3.5, 20, 350])


def test_sums_of_losses_start_from_pythons_zero():
    tape = Tape()
    x = tape.variable(np.arange(3.0))
    total = sum([x.sum(), x.sum() / 4])
    tape.backward(total)
    assert total.value == 3.75 and total.shape == ()
    assert_equal(x.grad, [1.25] * 3)


def test_constants_and_what_the_result_does_not_depend_on_get_nothing(rng):
    x, weight, bias = (
        rng.standard_normal((5, 3)),
        rng.standard_normal((3, 3)),
        rng.standard_normal(3),
    )
    tape = Tape()
    trained, unused = tape.variable(weight), tape.variable(bias)
    # Before the first Variable: not even on the tape.
    frozen = layer(x, weight, bias)
    out = linear(frozen, trained, bias)
    beside = linear(frozen, trained, unused)
    tape.backward(out.sum())
    assert len(tape.calls) == 0 and beside.grad is None and unused.grad is None
    assert_close(trained.grad, np.tile(frozen.sum(0), (3, 1)), REDUCTION["float64"])


def test_lists_and_dictionaries_as_arguments():
    for kind in (list, tuple, dict):
        tape = Tape()
        variables = [tape.variable(np.array([float(i)])) for i in range(3)]
        terms, weights = (
            [variables[0], np.array([10.0]), variables[2]],
            [variables[2], variables[1], np.array([5.0])],
        )
        if kind is dict:
            terms, weights = (
                dict(zip("abc", terms, strict=True)),
                dict(zip("abc", weights, strict=True)),
            )
        out = weighted_sum(kind(terms), kind(weights), scale=2.0)
        assert_equal(out.value, [2 * (0 * 2 + 10 * 1 + 2 * 5)])
        tape.backward(out)
        assert_equal([v.grad[0] for v in variables], [2 * 2, 2 * 10, 2 * (5 + 0)])


def test_detached():
    tape = Tape()
    x = tape.variable(np.arange(3.0))
    assert detached(x) is x.value
    assert detached({"a": [x, 1], "b": (x, "text")}) == {"a": [x.value, 1], "b": (x.value, "text")}
    assert detached(None) is None
    tape.backward((x + relu(detached(x)) + x).sum())
    assert_equal(x.grad, [2, 2, 2])


def test_two_tapes_do_not_mix(rng):
    weight, x = rng.standard_normal((3, 3)), rng.standard_normal((4, 3))
    first, second = Tape(), Tape()
    a, b = first.variable(weight), second.variable(weight)
    out_a, out_b = linear(x, a, 0.0), linear(2 * x, b, 0.0)
    first.backward(out_a.sum())
    assert b.grad is None and len(second.calls) == 1
    second.backward(out_b.sum())
    assert_equal(b.grad, 2 * a.grad)
    with pytest.raises(ValueError, match="Variables of two tapes"):
        linear(a, b, 0.0)


def test_a_gradient_of_the_wrong_shape_raises():
    tape = Tape()
    x = tape.variable(np.zeros(3))
    # The gradient of x, which is smaller, would have to be summed.
    out = np.zeros((2, 3)) + x
    with pytest.raises(
        ValueError, match=r"gradient of shape \(2, 3\) for a Variable of shape \(3,\)"
    ):
        tape.backward(out)


def test_a_primitive_without_a_backward_is_noticed_when_it_is_called():
    orphan = primitive(lambda x: x)
    assert orphan(3) == 3
    with pytest.raises(KeyError, match="_backward"):
        orphan(Tape().variable(np.zeros(3)))


def test_a_backward_is_found_by_its_name():
    assert backward_of(weighted_sum) is weighted_sum_backward
    assert backward_of(relu).__name__ == "relu_backward"


def test_names_of_the_primitives(rng):
    """In the order of the calls, operators and primitives with a backward of their own included."""
    tape = Tape()
    x = tape.variable(rng.standard_normal((2, 3)))
    assert tape.names() == []
    sine = primitive(np.sin, lambda grad, x: grad * np.cos(x))
    y = relu(linear(sine(x), np.ones((3, 3)), 0.0) - 1) * x
    result = np.concatenate([y[0], y[1]]).mean()
    names = ["sin", "linear", "add", "relu", "multiply", "getitem", "getitem", "concatenate"]
    assert tape.names() == [*names, "total", "divide"]
    tape.backward(result)
    assert tape.names() == []


# ---- the operators


@given(arrays(3, 4), arrays(3, 4))
def test_operators_of_two_variables(x, y):
    check_backward(lambda x, y: x + y, torch.add, x, y)
    check_backward(lambda x, y: x - y, torch.sub, x, y)
    check_backward(lambda x, y: x * y, torch.mul, x, y, linear=[0, 1])
    check_backward(lambda x, y: x / y, torch.div, x, away(y, 0) + 3 * np.sign(y), linear=[0])
    check_backward(lambda x: x * x, torch.square, x)


@given(arrays(3, 4))
def test_operators_with_a_constant(x):
    """A constant stands on either side, and broadcasts."""
    constant = np.array([1.0, -2.0, 3.0, 0.5])
    shift = np.array([[5.0], [6.0], [-7.0]])

    def sums(x):
        c, s = (array.astype(x.dtype) for array in (constant, shift))
        return c + (x - s) + c - (s - x) - (2 - x) + (1 + x)

    def twin(x):
        c, s = torch.tensor(constant), torch.tensor(shift)
        return c + (x - s) + c - (s - x) - (2 - x) + (1 + x)

    check_backward(sums, twin, x)
    check_backward(lambda x: x / np.float32(7), lambda x: x / 7, x, linear=[0])
    check_backward(lambda x: x * 3, lambda x: x * 3, x, linear=[0])
    check_backward(
        lambda x: constant.astype(x.dtype) * x * shift.astype(x.dtype),
        lambda x: torch.tensor(constant * shift) * x,
        x,
        linear=[0],
    )
    check_backward(lambda x: -x, torch.neg, x, linear=[0])
    check_backward(lambda x: 2 / x, lambda x: 2 / x, away(x, 0) + 3 * np.sign(x))


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_variables_do_not_broadcast(operation):
    """A gradient would have to be summed; only a constant may be the smaller operand."""
    for shapes in (((2, 3), (3,)), ((2, 3), (2, 1)), ((), (2, 3))):
        for first, second in (shapes, shapes[::-1]):
            tape = Tape()
            out = operation(*(tape.variable(np.ones(shape)) for shape in (first, second)))
            with pytest.raises(ValueError, match="only constants are broadcast"):
                tape.backward(out)


@given(arrays(4, 3, 5))
def test_reading(x):
    mask = np.arange(60).reshape(4, 3, 5) % 7 < 3
    # (0, 1) three times.
    rows, columns = np.array([0, 2, 0, 3, 0]), np.array([1, 1, 1, 0, 1])
    keys = [
        0,
        slice(1, 3),
        (slice(None), 2),
        (Ellipsis, slice(None, None, -2)),
        mask,
        mask[:, :, 0],
        rows,
        (rows, columns),
        [],
        [3, 3],
    ]
    keys += [
        (rows, slice(None), columns),
        (rows[:, None], columns),
        (slice(None), columns % 2, slice(1, 4)),
        mask & False,
    ]
    for key in keys:
        address = torch.tensor(np.arange(60).reshape(4, 3, 5)[key].copy())
        check_backward(
            lambda x, key=key: x[key],
            lambda x, address=address: x.flatten()[address],
            x,
            linear=[0],
        )


@given(arrays(2, 3, 4), st.permutations(range(3)))
def test_reshaping_transposing_adding_up(x, axes):
    check_backward(lambda x: x.reshape(4, 6), lambda x: x.reshape(4, 6), x, linear=[0])
    check_backward(lambda x: x.reshape(3, -1, 2), lambda x: x.reshape(3, -1, 2), x, linear=[0])
    check_backward(lambda x: x.transpose(*axes), lambda x: x.permute(*axes), x, linear=[0])
    check_backward(lambda x: x.sum(), lambda x: x.sum(), x, linear=[0])
    check_backward(lambda x: x.mean(), lambda x: x.mean(), x, linear=[0])


@given(arrays(2, 3), arrays(2, 0), arrays(2, 4))
def test_concatenate(x, y, z):
    fixed = np.ones((2, 2))
    parts = [torch.tensor(fixed)]
    check_backward(
        lambda *all: np.concatenate(all, axis=1), lambda *all: torch.cat(all, 1), x, y, z
    )
    check_backward(
        lambda x, z: np.concatenate([fixed.astype(x.dtype), x, z, x], axis=-1),
        lambda x, z: torch.cat([*parts, x, z, x], -1),
        x,
        z,
    )
    check_backward(lambda x: np.concatenate([x, x]), lambda x: torch.cat([x, x]), x, linear=[0])


def test_other_functions_of_numpy_refuse_a_variable():
    x = Tape().variable(np.zeros(3))
    for function in (np.sum, np.exp, lambda x: np.stack([x, x])):
        with pytest.raises(TypeError):
            function(x)


def test_a_variable_has_shape_dtype_and_length():
    x = Tape().variable(np.zeros((5, 2), np.float32))
    assert x.shape == (5, 2) and x.dtype == np.float32 and len(x) == 5


def test_a_variable_shows_its_shape_and_whether_it_has_a_gradient():
    tape = Tape()
    x = tape.variable(np.zeros((3, 2)))
    assert repr(x) == "Variable(shape=(3, 2), dtype=float64, grad=None)"
    tape.backward(x.mean())
    assert repr(x) == "Variable(shape=(3, 2), dtype=float64, grad=set)"


def test_every_primitive_has_a_backward_of_its_name():
    names = "add multiply divide reshape transpose total getitem concatenate"
    for name in names.split():
        assert backward_of(getattr(autodiff, name)).__name__ == f"{name}_backward"


def test_no_rows():
    def function(x):
        return (np.concatenate([x[np.zeros(0, int)], x]).reshape(0, 6).transpose(1, 0) / 2).sum()

    value, [gradient], _ = value_and_gradients(function, np.zeros((0, 2, 3)))
    assert value == 0 and gradient.shape == (0, 2, 3)
