"""Losses: against torchvision and detectron2, twin against twin, and their backwards."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.gradients import away, check_backward, compare_with_autograd, value_and_gradients
from support.image_golden import either, read
from support.strategies import arrays

import accelerated.box_head
import accelerated.labels
import accelerated.losses
import accelerated.mask_head
import accelerated.rpn
import reference.box_head
import reference.labels
import reference.losses
import reference.mask_head
import reference.rpn
from accelerated.verify.equality import GOLDEN_OPERATOR, REDUCTION, assert_close, assert_equal
from reference import box_coder, masks
from reference.autodiff import Tape
from reference.config import preset

K = 3
TORCHVISION = replace(preset("torchvision_r50_fpn"), num_classes=K)
DETECTRON2 = replace(preset("detectron2_r50_fpn"), num_classes=K)
both_configs = pytest.mark.parametrize(
    "config", [TORCHVISION, DETECTRON2], ids=["torchvision", "detectron2"]
)


def leaf(x, dtype=torch.float64):
    return torch.tensor(x, dtype=dtype, requires_grad=True)


def from_zero(classes):
    """detectron2's classes 0..K-1, background K -> labels 1..K, background 0."""
    return (classes + 1) % (K + 1)


def entry_count(config):
    return K + 1 if config.background == "first" else K


@either
@pytest.mark.parametrize("operator", ["tv/smooth_l1/ninth", "d2/smooth_l1/0.0", "d2/smooth_l1/0.5"])
def test_smooth_l1_as_recorded(which, golden, shared_golden, operator):
    case = read(which, golden, shared_golden, operator)
    difference, beta = case["in.a"] - case["in.b"], float(case["in.beta"])
    assert_close(
        reference.losses.smooth_l1(difference, beta).sum(), case["out.loss"], GOLDEN_OPERATOR
    )
    assert_close(
        accelerated.losses.smooth_l1(torch.from_numpy(difference), beta).sum(),
        case["out.loss"],
        GOLDEN_OPERATOR,
    )


@either
@pytest.mark.parametrize(
    "operator",
    [
        "tv/fastrcnn_loss",
        "d2/box_losses/beta0.000",
        "d2/box_losses/beta0.111",
        "d2/box_losses/beta1.000",
    ],
)
def test_box_losses_as_recorded(which, golden, shared_golden, operator):
    case = read(which, golden, shared_golden, operator)
    if operator.startswith("tv"):
        config, labels, target_deltas = TORCHVISION, case["in.labels"], case["in.targets"]
    else:
        config = replace(
            DETECTRON2, box_head=replace(DETECTRON2.box_head, smooth_l1_beta=float(case["in.beta"]))
        )
        labels = from_zero(case["in.gt_classes"])
        target_deltas = box_coder.encode(
            case["in.gt_boxes"], case["in.proposals"], config.box_head.box_weights
        )
    classification, box = reference.box_head.losses(
        case["in.logits"], case["in.deltas"], labels, target_deltas, config
    )
    assert_close(classification, case["out.cls"], GOLDEN_OPERATOR, "class loss")
    assert_close(box, case["out.box"], GOLDEN_OPERATOR, "box loss")

    logits, deltas = leaf(case["in.logits"]), leaf(case["in.deltas"])
    found = accelerated.box_head.losses(
        logits, deltas, torch.from_numpy(labels), torch.from_numpy(target_deltas), config
    )
    assert_close(found[0], case["out.cls"], GOLDEN_OPERATOR, "class loss")
    assert_close(found[1], case["out.box"], GOLDEN_OPERATOR, "box loss")
    sum(found).backward()
    assert_close(logits.grad, case["out.dlogits"], GOLDEN_OPERATOR, "gradient of the logits")
    assert_close(deltas.grad, case["out.ddeltas"], GOLDEN_OPERATOR, "gradient of the deltas")


@either
@pytest.mark.parametrize("operator", ["tv/maskrcnn_loss", "d2/mask_loss"])
def test_mask_loss_as_recorded(which, golden, shared_golden, operator):
    case = read(which, golden, shared_golden, operator)
    if operator.startswith("tv"):
        config, matched = TORCHVISION, case["in.idx"]
        labels = case["in.labels"][matched]
    else:
        config, matched, labels = DETECTRON2, np.arange(6), from_zero(case["in.classes"])
    targets = masks.targets(case["in.masks"], matched, case["in.boxes"], config.mask_head, 28)
    assert_close(
        reference.mask_head.loss(case["in.logits"], labels, targets, config),
        case["out.loss"],
        GOLDEN_OPERATOR,
    )
    logits = leaf(case["in.logits"])
    loss = accelerated.mask_head.loss(
        logits, torch.from_numpy(labels), torch.from_numpy(targets), config
    )
    assert_close(loss, case["out.loss"], GOLDEN_OPERATOR)
    if "out.dlogits" in case:
        loss.backward()
        assert_close(logits.grad, case["out.dlogits"], GOLDEN_OPERATOR)


@given(
    st.sampled_from([TORCHVISION, DETECTRON2]),
    st.integers(1, 3),
    st.integers(0, 20),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_rpn_losses_twins(config, images, anchors, sampled, seed):
    rng = np.random.default_rng(seed)
    logits, deltas, target_deltas = (
        rng.standard_normal((images, anchors, *tail)) for tail in ((), (4,), (4,))
    )
    labels = np.where(
        rng.random((images, anchors)) < sampled, rng.integers(0, 2, (images, anchors)), -1
    )
    expected = reference.rpn.losses(logits, deltas, labels, target_deltas, config.rpn)
    target_deltas[labels != 1] = np.nan  # never read
    for dtype in (torch.float64, torch.float32):
        leaves = leaf(logits, dtype), leaf(deltas, dtype)
        found = accelerated.rpn.losses(
            *leaves, torch.from_numpy(labels), torch.tensor(target_deltas, dtype=dtype), config.rpn
        )
        for actual, value in zip(found, expected, strict=True):
            assert_close(actual, value, REDUCTION[str(dtype).removeprefix("torch.")])
        sum(found).backward()
        assert all(x.grad.isfinite().all() for x in leaves)


def test_rpn_normalizers():
    logits, deltas = np.zeros((2, 4)), np.ones((2, 4, 4))
    labels = np.array([[1, 0, -1, -1], [0, -1, -1, -1]])
    for config, count in ((TORCHVISION.rpn, 3), (DETECTRON2.rpn, 2 * 256)):
        for twin, convert in ((reference, np.asarray), (accelerated, torch.from_numpy)):
            objectness, box = twin.rpn.losses(
                convert(logits), convert(deltas), convert(labels), convert(0 * deltas), config
            )
            assert_close(objectness, 3 * np.log(2) / count, 1e-14)
            assert_close(box, 4 * (1 - 0.5 * config.smooth_l1_beta) / count, 1e-14)


@given(
    st.sampled_from([TORCHVISION, DETECTRON2]),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
def test_roi_losses_twins(config, rois, empty, seed):
    """Empty slots (label -1 or 0, arbitrary targets) change neither value nor gradient."""
    rng = np.random.default_rng(seed)
    slots, entries, size = rois + empty, entry_count(config), 5
    place = np.sort(rng.permutation(slots)[:rois])
    class_logits, box_deltas, target_deltas = (
        rng.standard_normal((slots, n)) for n in (K + 1, 4 * entries, 4)
    )
    mask_logits, mask_targets = (
        rng.standard_normal((slots, entries, size, size)),
        rng.random((slots, size, size)),
    )
    labels = np.full(slots, -1)
    labels[place] = rng.integers(0, K + 1, rois)
    objects = np.flatnonzero(labels > 0)
    expected = [
        *reference.box_head.losses(
            class_logits[place], box_deltas[place], labels[place], target_deltas[place], config
        ),
        reference.mask_head.loss(
            mask_logits[objects], labels[objects], mask_targets[objects], config
        ),
    ]
    target_deltas[labels < 1] = np.nan
    for dtype in (torch.float64, torch.float32):
        leaves = leaf(class_logits, dtype), leaf(box_deltas, dtype), leaf(mask_logits, dtype)
        labels_t, deltas_t, masks_t = (
            torch.from_numpy(labels),
            torch.tensor(target_deltas, dtype=dtype),
            torch.tensor(mask_targets),
        )
        found = [
            *accelerated.box_head.losses(*leaves[:2], labels_t, deltas_t, config),
            accelerated.mask_head.loss(leaves[2], labels_t, masks_t, config),
        ]
        for actual, value in zip(found, expected, strict=True):
            assert_close(actual, value, REDUCTION[str(dtype).removeprefix("torch.")])
        sum(found).backward()
        for x in leaves:
            assert x.grad is not None and x.grad.isfinite().all()
            assert not x.grad[labels < 0].any()


def check_addends(addends, losses, alone, *arrays):
    """Raise AssertionError unless the addends sum to the losses and each is what it should be.

    addends, losses  functions of arrays, the first also of Variables, that return two each
    alone            the values of all addends of both losses, in two lists
    """
    taped = addends(*map(Tape().variable, arrays))
    for found, total, variable, values in zip(
        addends(*arrays), losses(*arrays), taped, alone, strict=True
    ):
        assert found.sum() == total
        assert_equal(variable.value, found)
        assert len(found) == len(values)
        for addend, value in zip(found, values, strict=True):
            assert_close(addend.sum(), value, REDUCTION["float64"])


@given(st.sampled_from([TORCHVISION, DETECTRON2]), st.integers(1, 3), st.integers(0, 2**31))
def test_rpn_addends(config, images, seed):
    """An addend is the loss of its anchor alone, divided by what all are divided by."""
    rng = np.random.default_rng(seed)
    logits, deltas, target_deltas = (rng.standard_normal((images, 7, *t)) for t in ((), (4,), (4,)))
    sampled = rng.integers(-1, 2, (images, 7))
    count = (sampled >= 0).sum() if config.rpn.loss_normalizer == "sampled" else 1

    def call(function, labels=sampled):
        return lambda logits, deltas: function(logits, deltas, labels, target_deltas, config.rpn)

    alone = []
    for which, column in ((sampled >= 0, 0), (sampled == 1, 1)):
        only = [np.full_like(sampled, -1) for _ in range(which.sum())]
        for labels, place in zip(only, np.argwhere(which), strict=True):
            labels[*place] = sampled[*place]
        losses = [call(reference.rpn.losses, labels)(logits, deltas)[column] for labels in only]
        alone.append([loss / count for loss in losses])
    check_addends(call(reference.rpn.addends), call(reference.rpn.losses), alone, logits, deltas)


@both_configs
def test_roi_addends(config, rng):
    """An addend is the loss of its RoI alone, divided by the number of RoIs."""
    labels = np.array([2, 0, 1, 0, K])
    objects = np.flatnonzero(labels)
    class_logits, box_deltas, target_deltas = (
        rng.standard_normal((5, n)) for n in (K + 1, 4 * entry_count(config), 4)
    )

    def call(name, rows=slice(None)):
        function = getattr(reference.box_head, name)
        return lambda *x: function(*x, labels[rows], target_deltas[rows], config)

    rows = [call("losses", [r])(class_logits[[r]], box_deltas[[r]]) for r in range(5)]
    alone = [classification / 5 for classification, _ in rows], [rows[r][1] / 5 for r in objects]
    check_addends(call("addends"), call("losses"), alone, class_logits, box_deltas)


@both_configs
def test_nothing_sampled_gives_zero_and_touches_every_input(config):
    entries, no_labels = entry_count(config), -torch.ones(6, dtype=torch.int64)
    leaves = [
        leaf(np.ones(shape))
        for shape in ((2, 3), (2, 3, 4), (6, K + 1), (6, 4 * entries), (6, entries, 5, 5))
    ]
    found = [
        *accelerated.rpn.losses(
            *leaves[:2], no_labels.view(2, 3), torch.full((2, 3, 4), torch.nan), config.rpn
        ),
        *accelerated.box_head.losses(
            *leaves[2:4], no_labels, torch.full((6, 4), torch.nan), config
        ),
        accelerated.mask_head.loss(leaves[4], no_labels, torch.zeros(6, 5, 5), config),
    ]
    assert [x.item() for x in found] == [0.0] * 5
    sum(found).backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)
    empty = reference.mask_head.loss(
        np.ones((0, entries, 5, 5)), np.zeros(0, dtype=int), np.ones((0, 5, 5)), config
    )
    assert (
        empty
        == 0
        == reference.box_head.losses(
            np.ones((0, K + 1)),
            np.ones((0, 4 * entries)),
            no_labels[:0].numpy(),
            np.ones((0, 4)),
            config,
        )[0]
    )


def test_extreme_logits_stay_finite():
    logits, targets = np.array([-1e4, -800.0, 0.0, 800.0, 1e4]), np.array([1.0, 0.0, 0.5, 1.0, 0.0])
    expected = [1e4, 0, np.log(2), 0, 1e4]
    assert_close(reference.losses.binary_cross_entropy(logits, targets), expected, 1e-15)
    assert_close(
        accelerated.losses.binary_cross_entropy(
            torch.from_numpy(logits), torch.from_numpy(targets)
        ),
        expected,
        1e-15,
    )
    rows, columns = np.array([[1e4, 0.0], [0.0, 1e4], [-1e4, -1e4]]), np.array([1, 1, 0])
    assert_close(reference.losses.cross_entropy(rows, columns), [1e4, 0, np.log(2)], 1e-15)
    assert_close(
        accelerated.losses.cross_entropy(torch.from_numpy(rows), torch.from_numpy(columns)),
        [1e4, 0, np.log(2)],
        1e-15,
    )


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.1, 1.0])
def test_smooth_l1_at_its_joint(beta):
    d = np.array([-2.0, -beta, -beta / 2, 0.0, beta / 2, beta, 2.0])
    expected = (
        np.abs(d)
        if beta < 1e-5
        else np.where(np.abs(d) < beta, d * d / (2 * beta), np.abs(d) - beta / 2)
    )
    assert_close(reference.losses.smooth_l1(d, beta), expected, 1e-15)
    x = leaf(d)
    accelerated.losses.smooth_l1(x, beta).sum().backward()
    assert_close(accelerated.losses.smooth_l1(x, beta), expected, 1e-15)
    assert_close(x.grad, np.sign(d) if beta < 1e-5 else np.clip(d / beta, -1, 1), 1e-15)


# ---- backwards

ROWS = st.integers(0, 5)


@given(ROWS.flatmap(lambda rows: arrays(rows, 4)), st.sampled_from([0.0, 1e-6, 1 / 9, 1.0]))
def test_smooth_l1_backward(d, beta):
    check_smooth_l1_backward(away(d, 0, beta, -beta), beta)


def check_smooth_l1_backward(d, beta):
    theirs = beta if beta >= 1e-5 else 0.0
    check_backward(
        lambda d: reference.losses.smooth_l1(d, beta),
        lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none", beta=theirs),
        d,
    )


@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_smooth_l1_at_its_kinks(beta):
    """The sign of 0 is 0; quadratic and linear part meet in the same slope."""
    d = np.array([-beta, -0.0, 0.0, beta])
    _, [gradient], _ = value_and_gradients(
        lambda d: reference.losses.smooth_l1(d, beta), d, grad_out=np.full(4, 3.0)
    )
    assert_equal(gradient, 3 * np.sign(d))
    compare_with_autograd(
        lambda d: reference.losses.smooth_l1(d, beta),
        lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none", beta=beta),
        d,
    )


@given(st.data(), ROWS, st.booleans())
def test_binary_cross_entropy_backward(data, rows, soft):
    logits, targets = 3 * data.draw(arrays(rows, 3, 4)), data.draw(arrays(rows, 3, 4))
    check_binary_cross_entropy_backward(logits, 1 / (1 + np.exp(-targets)) if soft else targets > 0)


def check_binary_cross_entropy_backward(logits, targets):
    wanted = (
        targets if targets.dtype == bool else targets.astype(np.float32)
    )  # as the mask targets of a float32 model
    check_backward(
        lambda x: reference.losses.binary_cross_entropy(x, wanted),
        lambda x: F.binary_cross_entropy_with_logits(
            x, torch.tensor(wanted, dtype=x.dtype), reduction="none"
        ),
        logits,
    )


@given(st.data(), ROWS, st.integers(2, 5))
def test_cross_entropy_backward(data, rows, classes):
    columns = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)), int
    )
    check_cross_entropy_backward(
        2 * np.tanh(data.draw(arrays(rows, classes))), columns
    )  # unsaturated: softmax - 1 would cancel


def check_cross_entropy_backward(logits, columns):
    check_backward(
        lambda x: reference.losses.cross_entropy(x, columns),
        lambda x: F.cross_entropy(x, torch.tensor(columns), reduction="none"),
        logits,
    )


def test_gradients_at_extreme_logits():
    logits, targets = np.array([-1e4, -800.0, 0.0, 800.0, 1e4]), np.array([1.0, 0.0, 0.5, 1.0, 0.0])
    _, [gradient], _ = value_and_gradients(
        lambda x: reference.losses.binary_cross_entropy(x, targets), logits, grad_out=np.ones(5)
    )
    assert_close(gradient, [-1, 0, 0, 0, 1], 1e-15)
    rows, columns = np.array([[1e4, 0.0], [0.0, 1e4], [-1e4, -1e4]]), np.array([1, 1, 0])
    _, [gradient], _ = value_and_gradients(
        lambda x: reference.losses.cross_entropy(x, columns), rows, grad_out=np.ones(3)
    )
    assert_close(gradient, [[1, -1], [0, 0], [-0.5, 0.5]], 1e-15)


@given(
    st.sampled_from([TORCHVISION, DETECTRON2]),
    st.integers(1, 3),
    st.integers(0, 20),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_gradients_of_the_rpn_losses(config, images, anchors, sampled, seed):
    rng = np.random.default_rng(seed)
    logits, difference, target_deltas = (
        rng.standard_normal((images, anchors, *tail)) for tail in ((), (4,), (4,))
    )
    deltas = target_deltas + away(
        difference, 0, config.rpn.smooth_l1_beta, -config.rpn.smooth_l1_beta
    )
    labels = np.where(
        rng.random((images, anchors)) < sampled, rng.integers(0, 2, (images, anchors)), -1
    )

    def total(losses, convert):
        def function(logits, deltas):
            targets = convert(target_deltas.astype(str(deltas.dtype).removeprefix("torch.")))
            return sum(losses(logits, deltas, convert(labels), targets, config.rpn))

        return function

    check_backward(
        total(reference.rpn.losses, np.asarray),
        total(accelerated.rpn.losses, torch.from_numpy),
        logits,
        deltas,
    )


@given(st.sampled_from([TORCHVISION, DETECTRON2]), st.integers(0, 12), st.integers(0, 2**31))
def test_gradients_of_the_roi_losses(config, rois, seed):
    """From no RoI at all, and from RoIs without an object, to objects in all classes."""
    rng = np.random.default_rng(seed)
    entries, size, labels = entry_count(config), 3, rng.integers(0, rng.integers(1, K + 2), rois)
    objects = np.flatnonzero(labels > 0)
    class_logits, difference, target_deltas = (
        rng.standard_normal((rois, *n)) for n in ((K + 1,), (entries, 4), (1, 4))
    )
    beta = config.box_head.smooth_l1_beta
    box_deltas, target_deltas = (
        (target_deltas + away(difference, 0, beta, -beta)).reshape(rois, 4 * entries),
        target_deltas[:, 0],
    )
    mask_logits, mask_targets = (
        rng.standard_normal((len(objects), entries, size, size)),
        rng.random((len(objects), size, size)),
    )

    def total(losses, convert):
        def function(class_logits, box_deltas, mask_logits):
            deltas, wanted = (
                convert(x.astype(str(class_logits.dtype).removeprefix("torch.")))
                for x in (target_deltas, mask_targets)
            )
            boxes = losses.box_head.losses(
                class_logits, box_deltas, convert(labels), deltas, config
            )
            return sum(boxes) + losses.mask_head.loss(
                mask_logits, convert(labels[objects]), wanted, config
            )

        return function

    check_backward(
        total(reference, np.asarray),
        total(accelerated, torch.from_numpy),
        class_logits,
        box_deltas,
        mask_logits,
    )


@given(st.data(), ROWS, st.integers(2, 5))
def test_soft_cross_entropy_backward(data, rows, classes):
    check_soft_cross_entropy_backward(
        2 * np.tanh(data.draw(arrays(rows, classes))), data.draw(arrays(rows, classes)) ** 2
    )


def check_soft_cross_entropy_backward(logits, weights):
    """Targets: each row of `weights` brought to a sum of 1."""
    targets = weights / weights.sum(axis=1, keepdims=True)
    check_backward(
        lambda x: reference.losses.soft_cross_entropy(x, targets.astype(x.dtype)),
        lambda x: F.cross_entropy(x, torch.tensor(targets, dtype=x.dtype), reduction="none"),
        logits,
    )


# ---- what the mask branch may compete for


def mask_variant(loss="sigmoid", class_agnostic=False, background="last"):
    config = replace(DETECTRON2, background=background)
    return replace(
        config, mask_head=replace(config.mask_head, loss=loss, class_agnostic=class_agnostic)
    )


VARIANTS = [
    mask_variant(*v) for v in product(("sigmoid", "softmax"), (False, True), ("first", "last"))
]


@given(st.sampled_from(VARIANTS), st.integers(0, 6), st.integers(0, 2**31))
def test_mask_variants_twins(config, rois, seed):
    """Loss, gradient and probabilities agree, gradients are exact, empty slots change nothing."""
    rng, size = np.random.default_rng(seed), 3
    labels, targets = rng.integers(1, K + 1, rois), rng.random((rois, size, size))
    logits = rng.standard_normal((rois, reference.labels.mask_layout(config).columns, size, size))
    check_backward(
        lambda x: reference.mask_head.loss(x, labels, targets.astype(x.dtype), config),
        lambda x: accelerated.mask_head.loss(
            x, torch.tensor(labels), torch.tensor(targets), config
        ),
        logits,
    )
    probabilities = reference.mask_head.probabilities(logits, labels, config)
    assert_close(
        accelerated.mask_head.probabilities(torch.tensor(logits), torch.tensor(labels), config),
        probabilities,
        REDUCTION["float64"],
    )

    padded = leaf(np.concatenate([logits, rng.standard_normal((2, *logits.shape[1:]))]))
    with_empty = (
        torch.tensor([*labels, 0, -1]),
        torch.tensor(np.concatenate([targets, rng.random((2, size, size))])),
    )
    loss = accelerated.mask_head.loss(padded, *with_empty, config)
    assert_close(
        loss, reference.mask_head.loss(logits, labels, targets, config), REDUCTION["float64"]
    )
    loss.backward()
    assert not padded.grad[rois:].any()
    assert_close(
        accelerated.mask_head.probabilities(padded.detach(), with_empty[0], config)[:rois],
        probabilities,
        REDUCTION["float64"],
        "probabilities",
    )


@given(st.sampled_from(["sigmoid", "softmax"]), st.booleans(), st.integers(0, 2**31))
def test_mask_addends(loss, class_agnostic, seed):
    config, rng = mask_variant(loss, class_agnostic), np.random.default_rng(seed)
    labels, targets = np.array([2, 1, K]), rng.random((3, 2, 2))
    logits = rng.standard_normal((3, reference.labels.mask_layout(config).columns, 2, 2))
    found = reference.mask_head.addends(logits, labels, targets, config)
    assert found.shape == (3, 2, 2)
    assert found.sum() == reference.mask_head.loss(logits, labels, targets, config)
    taped = reference.mask_head.addends(Tape().variable(logits), labels, targets, config)
    assert_equal(taped.value, found)
    for r, y, x in np.ndindex(found.shape):
        pixel = slice(r, r + 1), ..., slice(y, y + 1), slice(x, x + 1)
        alone = reference.mask_head.loss(logits[pixel], labels[r : r + 1], targets[pixel], config)
        assert_close(found[r, y, x], alone / found.size, REDUCTION["float64"])


@pytest.mark.parametrize("background", ["first", "last"])
def test_softmax_of_hard_targets_is_the_cross_entropy_of_every_pixel(rng, background):
    """Over K + 1 classes: the object's own where its mask is, the background elsewhere."""
    config, rois, size = mask_variant("softmax", False, background), 5, 4
    labels, targets = rng.integers(1, K + 1, rois), rng.random((rois, size, size)) < 0.5
    logits = 3 * rng.standard_normal((rois, K + 1, size, size))
    columns = np.where(targets, labels[:, None, None], 0)
    columns = columns if background == "first" else (columns - 1) % (K + 1)
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(columns))
    assert_close(
        reference.mask_head.loss(logits, labels, targets.astype(float), config),
        expected,
        REDUCTION["float64"],
    )
    tensors = torch.tensor(logits), torch.tensor(labels), torch.tensor(targets)
    assert_close(accelerated.mask_head.loss(*tensors, config), expected, REDUCTION["float64"])
    own = torch.tensor(logits).softmax(1)[np.arange(rois), labels - (background == "last")]
    assert_close(
        reference.mask_head.probabilities(logits, labels, config), own, REDUCTION["float64"]
    )


def test_masks_by_hand():
    """One pixel with logits 0 and ln 3: sigmoid gives 3/4, softmax 3 / (1 + 3 + ..)."""
    logits, one = np.log([1.0, 3.0, 1.0, 1.0])[None, :, None, None], np.ones((1, 1, 1))
    for loss, channels, probability in (("sigmoid", 3, 3 / 4), ("softmax", 4, 3 / 6)):
        config = mask_variant(loss)
        found = reference.mask_head.probabilities(logits[:, :channels], np.array([2]), config)
        assert_close(found, probability * one, 1e-15)
        assert_close(
            reference.mask_head.loss(logits[:, :channels], np.array([2]), one, config),
            -np.log(probability),
            1e-15,
        )
        background = 1 - probability if loss == "sigmoid" else 1 / 6
        assert_close(
            reference.mask_head.loss(logits[:, :channels], np.array([2]), 0 * one, config),
            -np.log(background),
            1e-15,
        )


def test_sigmoid_classes_do_not_compete_and_softmax_classes_do(rng):
    logits, labels, targets = (
        leaf(rng.standard_normal((2, 4, 3, 3))),
        torch.tensor([1, 3]),
        torch.rand(2, 3, 3, dtype=torch.float64),
    )
    for loss, touched in (("sigmoid", 2), ("softmax", 8)):
        [gradient] = torch.autograd.grad(
            accelerated.mask_head.loss(
                logits, labels, targets, mask_variant(loss, background="first")
            ),
            logits,
        )
        assert gradient.flatten(2).any(2).sum() == touched
