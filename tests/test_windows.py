"""The windows of DeepMask: where they lie, and which of them fit an object."""

import numpy as np
import pytest

from reference import windows

# Centre (26, 36); the window that belongs to it has a side of 56, so that 4 pixels are 1/14 of it.
BOX = np.array([[10.0, 20, 42, 52]])


def moved(x=0.0, y=0.0, factor=1.0):
    """The window of BOX, moved by pixels and enlarged."""
    return windows.squares(np.array([[26.0 + x, 36 + y]]), np.array([56.0 * factor]))


def test_an_object_takes_4_of_7_parts_of_its_window():
    assert windows.canonical(BOX).tolist() == [[-2.0, 8, 54, 64]]
    # The longer side counts, and the window is square.
    assert windows.canonical(np.array([[0.0, 0, 8, 16]])).tolist() == [[-10.0, -6, 18, 22]]


def test_a_grid_covers_the_image():
    found = windows.grid(8, 16, (8.0, 16.0), 0.5)
    assert found[:8].tolist() == [
        [x - 4.0, y - 4, x + 4, y + 4] for y in (2, 6) for x in (2, 6, 10, 14)
    ]
    assert found[8:].tolist() == [[-4.0, -4, 12, 12], [4, -4, 20, 12]]


CASES = [
    # At the limits: 1/14 of the side still fits, 1/7 is far, and so is twice or half the size.
    (dict(x=4.0), 1),
    (dict(x=-4.0, y=4.0), 1),
    (dict(x=4.1), -1),
    (dict(y=-4.1), -1),
    (dict(x=7.9, y=1.0), -1),
    (dict(x=8.0), 0),
    (dict(x=1.0, y=-8.0), 0),
    (dict(factor=2**0.2), 1),
    (dict(factor=2**-0.2), 1),
    (dict(factor=2**0.3), -1),
    (dict(factor=2**-0.9), -1),
    (dict(factor=2.0), 0),
    (dict(factor=0.5), 0),
    # Lengths are in sides of the window itself: 5 pixels are less than 1/14 of 75.
    (dict(x=5.0, factor=75 / 56), -1),
    (dict(x=4.5, factor=65 / 56), 1),
]


@pytest.mark.parametrize(("placed", "expected"), CASES, ids=str)
def test_labels_at_the_limits(placed, expected):
    labels, objects = windows.label(moved(**placed), BOX)
    assert labels.tolist() == [expected] and (expected != 1 or objects.tolist() == [0])


def test_labels_among_two_objects():
    boxes = np.concatenate([BOX, BOX + 100, BOX + 103])
    squares = np.concatenate([moved(), moved(101, 101), moved(102, 102), moved(50, 50), moved(5)])
    labels, objects = windows.label(squares, boxes)
    assert labels.tolist() == [1, 1, 1, 0, -1]
    # Two objects fit the second and third window: the nearer one is theirs.
    assert objects[:3].tolist() == [0, 1, 2]


def test_drawn_windows_have_the_labels_they_are_given(rng):
    boxes = np.array([[5.0, 5, 25, 30], [60, 60, 75, 80], [90, 20, 120, 44]])
    counts = np.zeros(2)
    for _ in range(50):
        squares, labels, objects = windows.draw(boxes, rng)
        assert np.allclose(squares[:, 2] - squares[:, 0], squares[:, 3] - squares[:, 1])
        again, matched = windows.label(squares, boxes)
        assert (again == labels).all() and (matched == objects).all()
        assert labels[:3].tolist() == [1, 1, 1] and objects[:3].tolist() == [0, 1, 2]
        counts += np.bincount(labels, minlength=2)
    assert 0.4 < counts[1] / counts.sum() < 0.65
