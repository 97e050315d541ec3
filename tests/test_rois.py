"""What the RoI operators share: checks that name the bad row, output sizes, rounding, outputs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from support.strategies import boxes as some_boxes

import accelerated.rois
import reference.rois
from accelerated.verify.equality import assert_equal

FEATURES = np.zeros((2, 3, 4, 5))
ZEROS = np.zeros(3, np.int64)


def check(implementation, rois, image_index):
    if implementation == "numpy":
        return reference.rois.check(FEATURES, rois, image_index)
    tensors = [torch.as_tensor(x) for x in (rois, image_index)]
    level_index = torch.zeros_like(tensors[1])
    accelerated.rois.check([torch.as_tensor(FEATURES)], *tensors, level_index)
    return tensors


BOTH = pytest.mark.parametrize("implementation", ["numpy", "torch"])


@BOTH
@pytest.mark.parametrize(
    ("rois", "image_index", "message"),
    [
        (np.zeros((3, 5)), ZEROS, "expected rois"),
        (np.zeros((3, 4)), ZEROS[:2], "expected rois"),
        ([[0.0] * 4, [0, 0, np.nan, 1], [np.inf] * 4], ZEROS, r"rois\[1\]"),
        (np.zeros((3, 4)), np.array([0, 1, 2]), r"image_index\[2\] is 2"),
        (np.zeros((3, 4)), np.array([0, -2, -1]), r"image_index\[1\] is -2"),
    ],
)
def test_the_first_bad_row_is_named(implementation, rois, image_index, message):
    with pytest.raises(ValueError, match=message):
        check(implementation, np.asarray(rois), image_index)


@BOTH
def test_padding_may_hold_anything_and_no_rois_are_fine(implementation):
    rois = np.array([[0.0, 0, 1, 1], [np.nan, np.inf, 0, 0], [0, 0, 1, 1]])
    assert_equal(check(implementation, rois, np.array([0, -1, 1]))[1], [0, -1, 1])
    check(implementation, np.zeros((0, 4)), np.zeros(0, np.int64))


def test_a_missing_level_is_named():
    features, rois = [torch.zeros(1, 1, 4, 4)] * 2, torch.zeros(2, 4)
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"level_index\[1\] is 2"):
        accelerated.rois.check(features, rois, index, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="2 levels of features, 1 scales"):
        accelerated.rois.prepare(features, rois, index, index, [0.5])


def test_integer_and_half_precision_rois_become_floats():
    assert reference.rois.check(FEATURES, np.zeros((1, 4), int), ZEROS[:1])[0].dtype == np.float64
    for dtype in (torch.float32, torch.float64):
        given = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
        index = torch.zeros(1, dtype=torch.int64)
        _, rois, *_ = accelerated.rois.prepare([torch.zeros(1)], given, index, index, [1.0])
        assert rois.dtype == dtype and not rois.requires_grad
        _, rois, *_ = accelerated.rois.prepare([torch.zeros(1)], given.half(), index, index, [1.0])
        assert rois.dtype == torch.float32


@pytest.mark.parametrize("size", [3, (3, 3), [3, 3]])
def test_pair(size):
    assert reference.rois.pair(size) == (3, 3)
    assert accelerated.rois.pair(size) == [3, 3]


@given(some_boxes(20, 20))
def test_whole_pixels_twins(rois):
    scale = torch.full((len(rois),), 0.25, dtype=torch.float64)
    whole = accelerated.rois.whole_pixels(torch.as_tensor(rois), scale)
    expected = reference.rois.whole_pixels(rois, 0.25)
    assert_equal(whole, expected)
    assert (expected == np.trunc(expected)).all()
    assert (expected[:, 2:] - expected[:, :2] >= 1).all()


def test_half_a_pixel_rounds_away_from_zero():
    rois = np.array([[0.5, -0.5, 2.5, 1.5], [1.49, -1.49, 3.51, -1.5]])
    expected = [[1, -1, 4, 3], [1, -1, 5, 0]]
    assert_equal(reference.rois.whole_pixels(rois, 1.0), expected)
    scale = torch.ones(2, dtype=torch.float64)
    assert_equal(accelerated.rois.whole_pixels(torch.as_tensor(rois), scale), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_output_has_the_memory_format_of_the_features(memory_format):
    features = torch.zeros(2, 4, 5, 6, dtype=torch.float16).contiguous(memory_format=memory_format)
    out, index = accelerated.rois.empty_output([features], torch.zeros(3, 4), [2, 3], True)
    assert out.shape == (3, 4, 2, 3) and out.dtype == torch.float16
    assert out.is_contiguous(memory_format=memory_format) and index.stride() == out.stride()
    assert index.dtype == torch.int32
    assert not len(accelerated.rois.empty_output([features], torch.zeros(3, 4), [2, 3], False)[1])


def test_whole_pixels_of_integers_are_those_of_floats():
    rois = np.array([[2, 2, 9, 13]])
    assert_equal(reference.rois.whole_pixels(rois, 0.25), [[1, 1, 3, 4]])
