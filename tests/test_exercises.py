"""Exercises: every checker accepts the answer and names the mistake in a wrong one."""

import importlib
import pkgutil

import answers
import exercises
import pytest

from tests.support.mistakes import MISTAKES

MODULES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))
CASES = [(name, *case) for name, cases in MISTAKES.items() for case in cases]


def check(name, answer):
    return importlib.import_module(f"exercises.{name}").check(answer)


@pytest.mark.parametrize("name", MODULES)
def test_the_blank_is_not_solved_yet(name):
    answer = getattr(answers, name)
    blank = (lambda *_, **__: None) if callable(answer) else None
    assert check(name, blank) == exercises.NOT_SOLVED


@pytest.mark.parametrize("name", MODULES)
def test_the_answer_is_right(name):
    assert check(name, getattr(answers, name)) == exercises.RIGHT


@pytest.mark.parametrize("name, mistake, hint", CASES)
def test_a_mistake_is_named(name, mistake, hint):
    reply = check(name, mistake)
    assert reply.startswith("wrong: ") and hint in reply


@pytest.mark.parametrize("name", MODULES)
def test_a_failing_answer_is_wrong(name):
    if callable(getattr(answers, name)):
        reply = check(name, lambda *_, **__: 1 / 0)
        assert reply.startswith("wrong: ") and "ZeroDivisionError" in reply


def test_every_exercise_has_three_mistakes():
    assert set(MISTAKES) == set(MODULES)
    assert [name for name in MODULES if len(MISTAKES[name]) < 3] == []
    for name, cases in MISTAKES.items():
        replies = [check(name, mistake) for mistake, _ in cases]
        assert len(set(replies)) == len(replies), f"{name}: two mistakes, one hint"
