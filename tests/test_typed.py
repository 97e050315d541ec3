"""Dataclasses from plain values: what fits, and errors that name the field."""

from dataclasses import dataclass
from typing import Literal

import pytest

from reference import typed


@dataclass
class Leaf:
    count: int
    ratio: float = 0.5


@dataclass
class Tree:
    leaf: Leaf
    kind: Literal["oak", "elm"]
    sides: tuple[float, ...]
    pair: tuple[int, int]
    limit: float | None
    green: bool


VALUES = {
    "leaf": {"count": 3, "ratio": 2},
    "kind": "elm",
    "sides": [1, 2.5],
    "pair": (4, 5),
    "limit": None,
    "green": True,
}


def test_plain_values_become_a_dataclass():
    tree = typed.build(Tree, VALUES, "tree")
    assert tree == Tree(Leaf(3, 2.0), "elm", (1.0, 2.5), (4, 5), None, True)
    assert [type(x) for x in (tree.leaf.ratio, *tree.sides, *tree.pair)] == [float] * 3 + [int] * 2
    assert typed.build(Tree, VALUES | {"limit": 1}, "tree").limit == 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("leaf", 3, r"tree\.leaf: expected an object, got 3"),
        ("leaf", {"count": 3}, r"tree\.leaf\.ratio: missing"),
        ("leaf", {"count": 1, "ratio": 1, "x": 1}, r"tree\.leaf\.x: no such field"),
        ("leaf", {"count": True, "ratio": 1}, r"tree\.leaf\.count: expected int, got True"),
        ("leaf", {"count": 1.5, "ratio": 1}, r"tree\.leaf\.count: expected int, got 1\.5"),
        ("leaf", {"count": 1, "ratio": "high"}, r"tree\.leaf\.ratio: expected float, got 'high'"),
        ("kind", "ash", r"tree\.kind: expected one of oak, elm, got 'ash'"),
        ("kind", ["oak"], r"tree\.kind: expected one of oak, elm"),
        ("sides", 1.0, r"tree\.sides: expected a list, got 1\.0"),
        ("sides", [None], r"tree\.sides: expected float, got None"),
        ("pair", [1, 2, 3], r"tree\.pair: expected a list of 2, got"),
        ("limit", False, r"tree\.limit: expected float, got False"),
        ("green", 1, r"tree\.green: expected bool, got 1"),
    ],
)
def test_an_error_names_the_field(name, value, message):
    with pytest.raises(ValueError, match=message):
        typed.build(Tree, VALUES | {name: value}, "tree")
