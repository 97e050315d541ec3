"""Columns, deltas and mask channels of each label, written out by hand, in both twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import accelerated.labels
import reference.labels
from accelerated.verify.equality import assert_equal
from reference.config import preset

DETECTRON2 = replace(preset("detectron2_r50_fpn"), num_classes=3)
TWINS = [(reference.labels, np.asarray), (accelerated.labels, torch.as_tensor)]


@pytest.mark.parametrize(
    ("background", "columns", "delta_columns"),
    [("first", [0, 1, 2, 3], [1, 2, 3]), ("last", [3, 0, 1, 2], [0, 1, 2])],
)
def test_class_logits_and_deltas(background, columns, delta_columns):
    config = replace(DETECTRON2, background=background)
    for twin, convert in TWINS:
        layout = twin.class_layout(config)
        assert layout.columns == 4
        assert_equal(layout.column(convert([0, 1, 2, 3])), columns)
        assert_equal(np.arange(4)[layout.objects], columns[1:])
        layout = twin.delta_layout(config)
        assert layout.columns == (4 if background == "first" else 3)
        assert_equal(layout.column(convert([1, 2, 3])), delta_columns)
        assert_equal(np.arange(layout.columns)[layout.objects], delta_columns)


# (loss, class-agnostic, background): the number of channels, the channels of labels 1..3, and
# that of the background of a softmax.
CHANNELS = {
    ("sigmoid", False, "first"): (4, [1, 2, 3], None),
    ("sigmoid", False, "last"): (3, [0, 1, 2], None),
    ("sigmoid", True, "first"): (1, [0, 0, 0], None),
    ("sigmoid", True, "last"): (1, [0, 0, 0], None),
    ("softmax", False, "first"): (4, [1, 2, 3], 0),
    ("softmax", False, "last"): (4, [0, 1, 2], 3),
    ("softmax", True, "first"): (2, [1, 1, 1], 0),
    ("softmax", True, "last"): (2, [0, 0, 0], 1),
}


@pytest.mark.parametrize("variant", CHANNELS)
def test_mask_channels(variant):
    loss, class_agnostic, background_side = variant
    head = replace(DETECTRON2.mask_head, loss=loss, class_agnostic=class_agnostic)
    config = replace(DETECTRON2, background=background_side, mask_head=head)
    channels, columns, background = CHANNELS[variant]
    for twin, convert in TWINS:
        layout = twin.mask_layout(config)
        assert layout.columns == channels
        assert_equal(layout.column(convert([1, 2, 3])), columns)
        if background is not None:
            assert layout.background == background
            assert_equal(layout.column(convert([0])), [background])
    padding = accelerated.labels.mask_layout(config).column(torch.tensor([-1, 0]))
    assert ((padding >= 0) & (padding < channels)).all(), "within bounds"
