"""Region proposals: head, targets and proposals of both twins, and the rules of selection."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import narrow

from accelerated import anchors as fast_anchors
from accelerated import rpn as fast
from accelerated.verify.equality import (
    GOLDEN_MODEL,
    GOLDEN_OPERATOR,
    MODEL,
    REDUCTION,
    assert_close,
    assert_equal,
)
from reference import anchors, boxes, neck, rpn
from reference import config as configuration

SHAPES, IMAGE = [(8, 11), (4, 6), (2, 3), (1, 2), (1, 1)], (32, 44)
STRIDES = (4, 8, 16, 32, 64)


def grids(config):
    """Return as many maps as the configuration has, from the finest on."""
    shapes, strides = SHAPES[: len(config.anchors.sizes)], STRIDES[: len(config.anchors.sizes)]
    slow = anchors.grid(shapes, IMAGE, config.anchors, strides=strides)
    return slow, fast_anchors.grid(
        shapes, IMAGE, config.anchors, strides=strides, dtype=torch.float64
    )


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_head_twins(rng, name):
    config = narrow.config(name)
    model = narrow.model(config)
    channels, shapes = neck.of(config).channels(config), SHAPES[: len(config.anchors.sizes)]
    features = {
        level: rng.standard_normal((2, channels, *shape))
        for level, shape in enumerate(shapes, start=2)
    }
    expected = rpn.head(narrow.parameters(model), features, config.rpn)
    actual = model.rpn({level: torch.from_numpy(x) for level, x in features.items()})
    for what, a, e in zip(("logits", "deltas"), actual, expected, strict=True):
        for ours, theirs in zip(a, e, strict=True):
            assert_close(ours, theirs, MODEL["float64"], what)
    for what, a, e in zip(
        ("logits", "deltas"), fast.flatten(*actual), rpn.flatten(*expected), strict=True
    ):
        assert_close(a, e, MODEL["float64"], what)


def test_flattened_order():
    """Level, y, x, anchor; channel 4 a + coordinate."""
    logits = [torch.arange(2 * 3 * h * w).reshape(2, 3, h, w).float() for h, w in SHAPES]
    deltas = [torch.arange(2 * 12 * h * w).reshape(2, 12, h, w).float() for h, w in SHAPES]
    flat_logits, flat_deltas = fast.flatten(logits, deltas)
    y, x, a = 2, 4, 1
    row = (3 * 11 * 8) + (y * 6 + x) * 3 + a  # in the second level
    assert flat_logits[1, row] == logits[1][1, a, y, x]
    assert_equal(flat_deltas[1, row], deltas[1][1, 4 * a : 4 * a + 4, y, x])


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_same_parameters(name):
    config = narrow.config(name)
    assert {
        f"rpn.{n}": tuple(t.shape) for n, t in fast.RPN(config).state_dict().items()
    } == rpn.parameter_shapes(config)


@given(st.sampled_from(narrow.LAYOUTS), st.booleans(), st.integers(0, 10**6), st.floats(0.5, 40))
def test_proposals_twins(name, training, seed, spread):
    """Boxes and order are equal, also for saturated scores and boxes that leave or vanish."""
    rng, config = np.random.default_rng(seed), narrow.config(name)
    slow_anchors, torch_anchors = grids(config)
    total = sum(map(len, slow_anchors))
    logits, deltas = (
        rng.standard_normal((2, total)) * spread,
        rng.standard_normal((2, total, 4)) * (0.3, 0.3, 1, 1),
    )
    deltas[:, ::7, 2:] -= 20  # too small to be valid
    sizes = [(32, 44), (25, 31)]
    expected = rpn.proposals(logits, deltas, slow_anchors, sizes, config.rpn, training=training)
    found, scores, valid = fast.proposals(
        torch.from_numpy(logits),
        torch.from_numpy(deltas),
        torch_anchors,
        torch.tensor(sizes),
        config.rpn,
        training=training,
        backend="torch",
    )
    post = config.rpn.post_nms_top_n_train if training else config.rpn.post_nms_top_n_test
    assert found.shape == (2, post, 4) and scores.shape == valid.shape == (2, post)
    for i, (e_boxes, e_scores) in enumerate(expected):
        assert_equal(valid[i], np.arange(post) < len(e_boxes), "valid slots come first")
        assert_close(found[i][valid[i]], e_boxes, REDUCTION["float64"], "boxes")
        assert_close(scores[i][valid[i]], e_scores, REDUCTION["float64"], "scores")
    assert (found[~valid] == 0).all() and (scores[~valid] == 0).all()


def test_proposals_fewer_than_slots():
    """With a wish for more proposals than there are anchors, the rest of the slots stays empty."""
    config = narrow.config("tiny")
    config = replace(
        config, rpn=replace(config.rpn, post_nms_top_n_test=5000, pre_nms_top_n_test=3000)
    )
    _, grid = grids(config)
    total = sum(map(len, grid))
    found, _, valid = fast.proposals(
        torch.zeros(1, total),
        torch.zeros(1, total, 4),
        [g.float() for g in grid],
        torch.tensor([[32, 44]]),
        config.rpn,
        training=False,
    )
    assert found.shape == (1, 5000, 4)
    assert 0 < valid.sum() <= total


def test_proposals_ties_take_the_first_anchor():
    config = narrow.config("tiny")
    config = replace(
        config, rpn=replace(config.rpn, nms_iou=1.0, post_nms_top_n_test=7, pre_nms_top_n_test=7)
    )
    _, grid = grids(config)
    total = sum(map(len, grid))
    found, _, valid = fast.proposals(
        torch.zeros(1, total, dtype=torch.float64),
        torch.zeros(1, total, 4, dtype=torch.float64),
        grid,
        torch.tensor([[1000, 1000]]),
        config.rpn,
        training=False,
    )
    assert valid.all()
    assert_equal(found[0], grid[0][:7].clamp(min=0), "the first seven anchors of the finest level")


def test_no_suppression_between_levels():
    """The same box from two levels stays twice."""
    config = narrow.config("tiny")
    _, grid = grids(config)
    grid = [g.clone() for g in grid]
    total, first = sum(map(len, grid)), len(grid[0])
    grid[0][5] = grid[1][7] = torch.tensor([3.0, 4.0, 20.0, 21.0])
    logits = torch.full((1, total), -5.0, dtype=torch.float64)
    logits[0, [5, first + 7]] = 5.0
    found, _, _ = fast.proposals(
        logits,
        torch.zeros(1, total, 4, dtype=torch.float64),
        grid,
        torch.tensor([[32, 44]]),
        config.rpn,
        training=False,
    )
    assert_equal(found[0, 0], found[0, 1])
    assert found[0, 2].tolist() != found[0, 0].tolist()


@given(st.sampled_from(narrow.LAYOUTS), st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 3))
def test_targets_twins(name, seed, objects, padding):
    rng, config = np.random.default_rng(seed), narrow.config(name)
    slow_anchors, torch_anchors = grids(config)
    flat = np.concatenate(slow_anchors)
    corner, side = rng.uniform(-5, 30, (objects, 2)), rng.uniform(2, 30, (objects, 2))
    gt = np.concatenate([corner, corner + side], axis=1)
    overlap = boxes.iou(gt, flat)
    thresholds = np.array([config.rpn.foreground_iou, config.rpn.background_iou])
    if overlap.size and np.abs(overlap[..., None] - thresholds).min() < 1e-9:
        return
    labels, matched, deltas = rpn.match(flat, gt, config.rpn)
    slots = objects + max(padding, objects == 0)
    padded = torch.zeros(1, slots, 4, dtype=torch.float64)
    padded[0, :objects] = torch.from_numpy(gt)
    actual_labels, actual_matched, actual_deltas = fast.match(
        torch.cat(torch_anchors), padded, torch.arange(slots)[None] < objects, config.rpn
    )
    assert_equal(actual_labels[0], labels, "labels")
    assert_equal(actual_matched[0], matched, "matched")
    assert_close(actual_deltas[0], deltas, REDUCTION["float64"], "deltas")


def test_golden_torchvision(shared_golden):
    """torchvision's own proposals from its own logits, deltas and anchors."""
    z = shared_golden("tv_fpn_f64")
    config = configuration.preset("torchvision_r50_fpn")
    maps = [
        [torch.from_numpy(z[f"eval.rpn.{kind}.{level}"]) for level in range(5)]
        for kind in ("objectness", "deltas")
    ]
    shapes = [tuple(x.shape[-2:]) for x in maps[0]]
    grid = fast_anchors.grid(
        shapes, (160, 224), config.anchors, strides=STRIDES, dtype=torch.float64
    )
    assert_close(torch.cat(grid), z["eval.rpn.anchors"], GOLDEN_MODEL)
    sizes = torch.from_numpy(z["eval.transform.sizes"])
    found, scores, valid = fast.proposals(
        *fast.flatten(*maps), grid, sizes, config.rpn, training=False
    )
    for i in range(2):
        assert_close(found[i][valid[i]], z[f"eval.rpn.proposals.{i}"], GOLDEN_MODEL, "boxes")
        assert_close(
            scores[i][valid[i]], z[f"eval.rpn.proposal_scores.{i}"], GOLDEN_MODEL, "scores"
        )


@pytest.mark.parametrize("peer", ["torchvision", "detectron2"])
def test_golden_selection(golden, peer):
    """From decoded boxes and logits of three levels to proposals, in each peer's order of steps."""
    z = golden("rpn")
    z = {key.removeprefix(f"{peer}/"): z[key] for key in z.files if key.startswith(peer)}
    rpn_config = configuration.preset(f"{peer}_r50_fpn").rpn
    rpn_config = replace(
        rpn_config, pre_nms_top_n_test=int(z["in.pre"]), post_nms_top_n_test=int(z["in.post"])
    )
    level = np.repeat(np.arange(3), z["in.n_per_level"])
    size = int(z["in.h"]), int(z["in.w"])
    found, scores = rpn.select(
        z["in.proposals"], z["in.objectness"], level, size, rpn_config, training=False
    )
    assert_close(found, z["out.boxes"], GOLDEN_OPERATOR, "boxes")
    assert_close(
        scores,
        z["out.scores" if peer == "torchvision" else "out.logits"],
        GOLDEN_OPERATOR,
        "scores",
    )


def select(boxes_, logits, level=None, **fields):
    """Reference proposals of hand-made boxes on one level, in a large image."""
    rpn_config = replace(configuration.preset("torchvision_r50_fpn").rpn, **fields)
    level = np.zeros(len(boxes_), int) if level is None else np.asarray(level)
    return rpn.select(
        np.asarray(boxes_, float),
        np.asarray(logits, float),
        level,
        (100, 100),
        rpn_config,
        training=False,
    )


def test_min_size_inclusive_or_not():
    flat, thin = [0, 0, 10, 0], [20, 20, 30, 20.5]
    for min_size, inclusive, kept in (
        (0.5, True, 1),
        (0.5, False, 0),
        (0.0, True, 2),
        (0.0, False, 1),
    ):
        found, _ = select([flat, thin], [1, 2], min_size=min_size, min_size_inclusive=inclusive)
        assert len(found) == kept, (min_size, inclusive)


def test_saturated_probabilities_tie_where_logits_do_not():
    """Logits 50 and 60 both give probability 1: the finer level comes first."""
    pair = [[0, 0, 10, 10], [50, 50, 70, 70]]
    by_probability, scores = select(pair, [50, 60], [0, 1], nms_score="probability")
    by_logit, logits = select(pair, [50, 60], [0, 1], nms_score="logit")
    assert_equal(by_probability, pair)
    assert_equal(by_logit, pair[::-1])
    assert scores.tolist() == [1, 1] and logits.tolist() == [60, 50]


def test_top_k_counts_per_level_and_the_last_cut_per_image():
    grid = [[i * 10, 0, i * 10 + 5, 5] for i in range(6)]
    found, scores = select(
        grid,
        [6, 5, 4, 3, 2, 1],
        [0, 0, 0, 1, 1, 1],
        pre_nms_top_n_test=2,
        post_nms_top_n_test=3,
        nms_score="logit",
    )
    assert_equal(scores, [6, 5, 3])
    assert_equal(found, np.array(grid)[[0, 1, 3]])


def test_no_proposals():
    found, scores = select(
        [[200, 0, 210, 10], [-9, -9, 0, 0]], [1, 2]
    )  # nothing of them inside the image
    assert found.shape == (0, 4) and scores.shape == (0,)


def test_survivors_of_every_step():
    """Each step takes the anchors that it alone would take away."""
    decoded = np.array(
        [
            [50, 50, 70, 70],  # 0 removed by 5
            [0, 0, 10, 10],  # 1 kept, second best of its level
            [30, 30, 40, 40],  # 2 third of its level: not in the top 2
            [200, 0, 210, 10],  # 3 outside the image
            [80, 0, 90, 10],  # 4 kept
            [50, 51, 70, 71],  # 5 kept
            [0, 0, 10, 10],  # 6 as 1, on another level: not removed, but one too many
        ],
        float,
    )
    logits, level = np.array([3, 5, 1, 9, 6, 4, 2.0]), np.array([2, 1, 1, 0, 1, 2, 3])
    fields = {"pre_nms_top_n_test": 2, "post_nms_top_n_test": 3, "pre_nms_top_n_train": 1}
    rpn_config = replace(configuration.preset("torchvision_r50_fpn").rpn, **fields)
    arguments = decoded, logits, level, (100, 100), rpn_config
    found = rpn.survivors(*arguments, training=False)
    assert found.top_k.tolist() == [3, 4, 1, 5, 0, 6]
    assert found.sized.tolist() == [4, 1, 5, 0, 6]
    assert found.unsuppressed.tolist() == [4, 1, 5, 6]
    assert found.kept.tolist() == [4, 1, 5]
    assert rpn.survivors(*arguments, training=True).top_k.tolist() == [3, 4, 5, 6]
    boxes_, scores = rpn.select(*arguments, training=False)
    assert_equal(boxes_, decoded[[4, 1, 5]])
    assert_equal(scores, 1 / (1 + np.exp(-logits[[4, 1, 5]])))
