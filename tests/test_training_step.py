"""One training step: against recorded gradients, twin against twin for every preset, ten steps
of both optimizers, and finite differences."""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import golden_runs, narrow

import accelerated.optimizer
import reference.optimizer
from accelerated import structures as torch_structures
from accelerated.data.coco import CocoDataset
from accelerated.verify.equality import MODEL, assert_close, assert_equal, error
from reference import (
    activations,
    conv,
    grad_check,
    mask_rcnn,
    max_pool,
    rpn,
    shapes,
    structures,
    train,
)
from reference import parameters as reference_parameters
from reference.autodiff import Tape, Variable
from reference.config import preset

SHAPES, OBJECTS = ((96, 128), (80, 100)), (3, 2)


def draw(rng, config, shapes=SHAPES, objects=OBJECTS):
    """Images, targets and priorities of one step."""
    images, targets = narrow.scene(rng, shapes, objects)
    return (
        images,
        [structures.Target(**target) for target in targets],
        narrow.priorities(rng, config, shapes, objects),
    )


def compare(model, oracle, step, tolerance):
    """Compare the samples, losses and gradients of one step; return the oracle's gradients."""
    images, targets, priorities = step
    record, expected_record = torch_structures.Stages(), structures.Stages()
    model.zero_grad()
    losses = model.losses(
        images, [torch_structures.Target(**vars(t)) for t in targets], priorities, record=record
    )
    sum(losses.values()).backward()
    expected, gradients, _ = oracle.gradients(images, targets, priorities, expected_record)
    sampled = record.roi_labels >= 0
    for key in ("rpn_labels", "rpn_matched", "rpn_sampled"):
        assert_equal(
            getattr(record, key),
            getattr(expected_record, key),
            f"{key}: both must learn from the same anchors",
        )
    assert_close(
        record.rpn_target_deltas,
        expected_record.rpn_target_deltas,
        tolerance,
        "deltas of the anchors",
    )
    assert_equal(
        record.roi_labels[sampled],
        np.concatenate(expected_record.roi_labels),
        "labels of the RoIs: the same for both",
    )
    assert_close(
        record.sampled_rois[sampled],
        np.concatenate(expected_record.sampled_rois),
        tolerance,
        "RoIs: the same for both",
    )
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert_close(losses[name], loss, tolerance, name)
    own = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert (
        own.keys()
        == gradients.keys()
        == set(reference_parameters.trained_parameters(oracle.config))
    )
    for name, gradient in gradients.items():
        assert gradient.dtype == oracle.dtype
        assert_close(own[name], gradient, tolerance, f"gradient of {name}")
    compare_parameters(model, oracle, tolerance)
    return gradients


def compare_parameters(model, oracle, tolerance):
    """All weights and running statistics."""
    own = narrow.parameters(model)
    assert own.keys() == oracle.parameters.keys()
    for name, value in oracle.parameters.items():
        assert_close(own[name], value, tolerance, name)


def covered(shapes):
    """A target for each image: one object that is all of it."""
    return [
        structures.Target(np.array([[0.0, 0, w, h]]), np.array([2]), np.ones((1, h, w), bool))
        for h, w in shapes
    ]


def check_golden(run):
    losses, gradients, _ = mask_rcnn.MaskRCNN(run.config, run.parameters).gradients(
        run.images, run.targets, run.priorities()
    )
    run.check_losses(losses)
    run.check_gradients(gradients)


@pytest.mark.parametrize("extent", ["subset", "complete"])
def test_torchvision(request, extent):
    check_golden(golden_runs.torchvision(request, extent))


@pytest.mark.parametrize(("neck", "extent"), golden_runs.DETECTRON2_RUNS)
def test_detectron2(request, neck, extent):
    check_golden(golden_runs.detectron2(request, neck, extent))


OTHERS = ("none in one image", "none", "one covers all")


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        *((name, "objects") for name in narrow.PRESETS),
        *((name, scene) for name in narrow.LAYOUTS for scene in OTHERS),
    ],
)
def test_twins(rng, name, scene):
    """Two images of different sizes."""
    config = narrow.config(name)
    model, oracle = narrow.twins(config)
    objects = {"none in one image": (0, 2), "none": (0, 0), "one covers all": (1, 1)}.get(
        scene, OBJECTS
    )
    images, targets, priorities = draw(rng, config, SHAPES, objects)
    targets = covered(SHAPES) if scene == "one covers all" else targets
    before = oracle.parameters
    gradients = compare(model, oracle, (images, targets, priorities), MODEL["float64"])
    moved = {
        name for name, value in oracle.parameters.items() if not np.array_equal(value, before[name])
    }
    statistics = (
        {name for name in before if ".running_" in name}
        if name == "torchvision_r50_fpn_v2"
        else set()
    )
    assert moved <= statistics and (moved == statistics or scene == "none"), (
        "of no RoI there are no statistics"
    )
    if scene == "objects":
        assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_frozen_stages(rng, norm):
    """Their weights get no gradient; their running statistics, under "batch", move all the same."""
    config = narrow.config("tiny")
    config = replace(config, backbone=replace(config.backbone, norm=norm, frozen_stages=2))
    model, oracle = narrow.twins(config)
    before = oracle.parameters
    gradients = compare(model, oracle, draw(rng, config), MODEL["float64"])
    assert not [
        name
        for name in gradients
        if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1."))
    ]
    moved = not np.array_equal(
        oracle.parameters.get("backbone.bn1.running_mean"), before.get("backbone.bn1.running_mean")
    )
    assert moved == (norm == "batch")


def small(name, **fields):
    """The narrow preset with few RoIs and coarse pooling."""
    config = narrow.config(name)
    side = 3 if config.shared_head == "none" else 4  # of a shared stage, that of the masks
    return replace(
        config,
        box_head=replace(
            config.box_head, batch_size=8, pooler=replace(config.box_head.pooler, output_size=side)
        ),
        mask_head=replace(config.mask_head, pooler=replace(config.mask_head.pooler, output_size=4)),
        **fields,
    )


def test_triton_twin(rng):
    """On Triton's kernels, interpreted without a GPU."""
    config = small("tiny", fpn=replace(narrow.config("tiny").fpn, channels=4))
    config = replace(
        config, rpn=replace(config.rpn, post_nms_top_n_train=6, pre_nms_top_n_train=12)
    )
    model, oracle = narrow.twins(config, backend="triton")
    compare(model, oracle, draw(rng, config, ((48, 64),), (2,)), MODEL["float64"])


def written(folder, annotations):
    """A data set of one image of 64 x 48 pixels with these annotations."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    data = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 5, "area": 1.0, **a}
            for n, a in enumerate(annotations, start=1)
        ],
    }
    (folder / "a.json").write_text(json.dumps(data))
    return CocoDataset(folder / "a.json", folder)


@pytest.mark.parametrize("objects", [0, 1])
def test_crowd_regions_teach_nothing(tmp_path, rng, objects):
    """A crowd region is no target and ignores no anchor: the step is bit for bit the same."""
    config = narrow.config(
        "tiny", transform=replace(narrow.config("tiny").transform, min_size=(72,), max_size=1000)
    )
    cat = {"iscrowd": 0, "bbox": [8, 6, 30, 20], "segmentation": [[8, 6, 38, 6, 38, 26, 8, 26]]}
    crowd = {
        "iscrowd": 1,
        "bbox": [40, 0, 20, 48],
        "segmentation": {"size": [48, 64], "counts": [40 * 48, 20 * 48, 4 * 48]},
    }
    priorities = narrow.priorities(rng, config, ((72, 96),), (objects,))
    steps = []
    for annotations in ([cat] * objects, [cat] * objects + [crowd]):
        image, target, _ = written(tmp_path, annotations)[0]
        arrays = (x.numpy() for x in (target.boxes, target.labels, target.masks))
        target = structures.Target(*arrays)
        assert len(target.labels) == objects
        model, oracle = narrow.twins(config)
        steps.append(compare(model, oracle, ([image], [target], priorities), MODEL["float64"]))
    for name, gradient in steps[0].items():
        assert_equal(gradient, steps[1][name], name)


def optimized(config, kind, rate):
    """Use an optimizer whose ten steps see warm-up, both rate falls, two decays and clipping."""
    optimizer = replace(
        config.optimizer,
        kind=kind,
        learning_rate=rate,
        batch_size=2,
        weight_decay=0.02,
        norm_weight_decay=0.005,
        warmup_iterations=3,
        warmup_factor=0.1,
        steps=(0.5, 0.8),
        clip_gradient_norm=2.0,
    )
    return replace(config, optimizer=optimizer)


class Listener(Tape):
    """A tape that keeps, of each ReLU and of the maximum, by how much every choice was made."""

    def backward(self, result):
        Listener.margins = [
            np.abs(arguments[0].value)
            if backward is activations.relu_backward
            else lead(arguments[0].value, **keywords)
            for _, backward, arguments, keywords, _ in self.calls
            if backward in (activations.relu_backward, max_pool.max_pool2d_backward)
        ]
        super().backward(result)


def lead(x, kernel, stride, padding=0):
    """Return the margin of the largest over the second pixel in each window; 1 if all are 0."""
    window = conv.patches(conv.pad(x, padding), (kernel, kernel), stride)
    ranked = np.sort(window.transpose(0, 1, 4, 5, 2, 3).reshape(-1, kernel * kernel))
    return (
        np.where(ranked[:, -1] > 0, ranked[:, -1] - ranked[:, -2], 1) if kernel > 1 else np.ones(1)
    )


def is_steady(oracle, step):
    """Check that float32 rounding decides nothing: margins of three times its change."""
    margins, gradients = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_rcnn, "Tape", Listener)
        for dtype in ("float32", "float64"):
            weights = {name: value.astype(dtype) for name, value in oracle.parameters.items()}
            gradients.append(mask_rcnn.MaskRCNN(oracle.config, weights).gradients(*step).gradients)
            margins.append(Listener.margins)
    return all(
        a.shape == b.shape and b.min() > 3 * np.abs(a - b).max()
        for a, b in zip(*margins, strict=True)
    ) and all(
        error(gradient, gradients[1][name]) < MODEL["float32"] / 4
        for name, gradient in gradients[0].items()
    )


def draw_steady(rng, oracle):
    """Draw a step in which rounding decides nothing: one image, whose padding would tie."""
    side = 96 if oracle.config.backbone.norm == "batch" else 64
    for _ in range(100):
        step = draw(rng, oracle.config, ((side, side),), (2,))
        if is_steady(oracle, step):
            return step
    raise AssertionError("no steady step among a hundred")


def shallow(name):
    """Shrink the model: through fifty batch norms float32 errors grow to 1e-4 and flip ReLUs."""
    config = small(name)
    depth = 18 if config.backbone.norm == "batch" else config.backbone.depth
    return replace(config, backbone=replace(config.backbone, depth=depth))


def ten_steps(config, dtype, draw_step):
    """Ten steps on new images: losses, weights, statistics and optimizer states agree."""
    model, oracle = narrow.twins(config, dtype)
    settings, tolerance, start = config.optimizer, MODEL[dtype], oracle.parameters
    optimizer, state = accelerated.optimizer.build(model, settings), reference.optimizer.State()
    for iteration in range(10):
        gradients = compare(model, oracle, draw_step(oracle), tolerance)
        rate = reference.optimizer.learning_rate(settings, iteration, 10, batch_size=2)
        assert rate == accelerated.optimizer.learning_rate(settings, iteration, 10, batch_size=2)
        gradients, norm = reference.optimizer.clip(gradients, settings.clip_gradient_norm)
        oracle.parameters, state = reference.optimizer.step(
            oracle.parameters, gradients, state, rate, settings
        )
        assert_close(
            accelerated.optimizer.step(optimizer, rate, settings.clip_gradient_norm),
            norm,
            tolerance,
            "norm of the gradients",
        )
    compare_parameters(model, oracle, tolerance)
    parameters = dict(model.named_parameters())
    memories = (
        {"exp_avg": state.mean, "exp_avg_sq": state.square}
        if settings.kind == "adamw"
        else {"momentum_buffer": state.mean}
    )
    for key, memory in memories.items():
        assert memory.keys() == gradients.keys()
        for name, value in memory.items():
            assert value.dtype == dtype
            assert_close(
                optimizer.state[parameters[name]][key], value, tolerance, f"{key} of {name}"
            )
    moved = {
        name: error(value, start[name])
        for name, value in oracle.parameters.items()
        if not np.array_equal(value, start[name])
    }
    assert moved.keys() - gradients.keys() == {
        name for name in start if ".running_" in name and config.backbone.norm == "batch"
    }
    assert min(moved[name] for name in gradients) > 5e-5, (
        "a test of weights that do not move tests nothing"
    )


KINDS = pytest.mark.parametrize(
    ("name", "kind"), [*((name, "sgd") for name in narrow.LAYOUTS), ("tiny", "adamw")]
)


@KINDS
def test_ten_steps(rng, name, kind):
    """Use small rates: at ten times these, fifty batch norms triple rounding errors each step."""
    config = optimized(small(name), kind, 0.002 if kind == "sgd" else 0.0002)
    ten_steps(config, "float64", lambda oracle: draw(rng, config, ((64, 96), (50, 80))))


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "sgd") for name in narrow.LAYOUTS if "fpn" in name), ("tiny", "adamw")],
)
def test_ten_steps_in_float32(rng, name, kind):
    config = optimized(shallow(name), kind, 0.003 if kind == "sgd" else 0.0001)
    ten_steps(config, "float32", lambda oracle: draw_steady(rng, oracle))


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_float32_is_near_float64(rng, name):
    config = shallow(name)
    double, single = (narrow.twins(config, dtype)[1] for dtype in ("float64", "float32"))
    step = draw_steady(rng, double)
    losses, gradients, _ = single.gradients(*step)
    expected_losses, expected, _ = double.gradients(*step)
    for loss, value in expected_losses.items():
        assert losses[loss].dtype == np.float32
        assert_close(losses[loss], value, MODEL["float32"], loss)
    for parameter, gradient in expected.items():
        assert gradients[parameter].dtype == np.float32
        assert_close(gradients[parameter], gradient, MODEL["float32"], f"gradient of {parameter}")


def test_nothing_of_the_tape_stays(rng, monkeypatch):
    """After the step the arrays of the forward pass are free."""
    tapes = []
    monkeypatch.setattr(mask_rcnn, "Tape", lambda: tapes.append(Tape()) or tapes[-1])
    _, oracle = narrow.twins(narrow.config("tiny"))
    oracle.gradients(*draw(rng, oracle.config))
    [tape] = tapes
    assert tape.calls == []
    assert not [x for x in gc.get_objects() if type(x) is Variable and x.tape is tape], (
        "a Variable outlives the step"
    )


def held(record):
    """The proposals of a recorded step, to give to the next."""
    pairs = zip(record.proposals, record.proposal_scores, strict=True)
    return [rpn.Proposals(*pair) for pair in pairs]


def test_finite_differences(rng):
    """The sum of the losses along random directions of all weights, with fixed proposals."""
    config = narrow.config("tiny")
    _, oracle = narrow.twins(config)
    step, record = draw(rng, config), structures.Stages()
    oracle.losses(*step, record)
    proposals = held(record)
    names = reference_parameters.trained_parameters(config)

    def total(*arrays):
        oracle.parameters = oracle.parameters | dict(zip(names, arrays, strict=True))
        return sum(oracle.losses(*step, proposals=proposals).values())

    start = [oracle.parameters[name] for name in names]
    for _ in range(3):
        assert grad_check.directional_error(total, *start, generator=rng, step=3e-8) <= 1e-6


def test_the_gradient_nobody_takes():
    """The losses also depend on the weights through the proposals; no gradient says so.

    Along the negative gradient g the sum of the losses falls by |g|² per unit of length, in the
    whole model and to eight digits, while the proposals are held still. While they move with the
    weights, it falls by another amount.
    """
    config, generators = preset("tiny"), [np.random.default_rng(seed) for seed in range(3)]
    parameters = reference_parameters.initial_parameters(config, generators[0])
    oracle, batches = mask_rcnn.MaskRCNN(config, parameters), train.shape_batches(seed=1, size=1)
    for _ in train.train(oracle, batches, iterations=12, generator=generators[1]):
        pass
    image, *objects = shapes.sample(5, 3)
    step, record = ([image], [structures.Target(*objects)]), structures.Stages()
    _, gradients, priorities = oracle.gradients(*step, record=record, generator=generators[2])
    # From a step of 2e-7 on, a ReLU of this image passes its kink.
    start, size = oracle.parameters, 5e-8
    expected = -sum(float(np.vdot(gradient, gradient)) for gradient in gradients.values())

    def slope(proposals):
        totals = []
        for length in (size, -size):
            moved = {name: start[name] - length * gradients[name] for name in gradients}
            oracle.parameters = start | moved
            totals.append(sum(oracle.losses(*step, priorities, proposals=proposals).values()))
        return (totals[0] - totals[1]) / (2 * size)

    assert expected < -1, "of no slope nothing is measured"
    assert abs(slope(held(record)) - expected) < 1e-8 * abs(expected)
    assert abs(slope(None) - expected) > 1e-4 * abs(expected)


def test_held_proposals_are_those_the_heads_learn_from(rng):
    """The same ones change nothing; one box that covers the image is what is pooled."""
    config = narrow.config("tiny")
    _, oracle = narrow.twins(config)
    step, record, again = draw(rng, config), structures.Stages(), structures.Stages()
    losses, gradients, _ = oracle.gradients(*step, record)
    same, its_gradients, _ = oracle.gradients(*step, again, proposals=held(record))
    assert same == losses
    for name, gradient in gradients.items():
        assert_equal(its_gradients[name], gradient, name)
    for key in ("proposals", "proposal_scores", "sampled_rois"):
        for ours, expected in zip(getattr(again, key), getattr(record, key), strict=True):
            assert_equal(ours, expected, key)
    box = np.array([[0.0, 0, 16, 16]])
    oracle.losses(*step, again, proposals=[rpn.Proposals(box, np.ones(1))] * 2)
    for rois, target in zip(again.sampled_rois, step[1], strict=True):
        assert len(rois) <= 1 + len(target.labels)
        assert (rois == box).all(axis=1).any()


def test_gradients_of_some_losses(rng):
    """One loss after the other they add up; what a loss does not depend on gets zeros."""
    config = narrow.config("tiny")
    _, oracle = narrow.twins(config)
    step = draw(rng, config)
    losses, gradients, priorities = oracle.gradients(*step)
    parts = {name: oracle.gradients(*step, of=[name]) for name in losses}
    for part in parts.values():
        assert part.losses == losses and part.priorities is priorities
        assert part.gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        total = sum(part.gradients[name] for part in parts.values())
        assert_close(total, gradient, MODEL["float64"], name)
    reached = {
        loss: {name.split(".")[0] for name, x in part.gradients.items() if x.any()}
        for loss, part in parts.items()
    }
    shared = {"backbone", "fpn"}
    assert reached == {
        "rpn_objectness": shared | {"rpn"},
        "rpn_box": shared | {"rpn"},
        "class": shared | {"box_head"},
        "box": shared | {"box_head"},
        "mask": shared | {"mask_head"},
    }
    pair = oracle.gradients(*step, of=("mask", "class"))
    for name, gradient in pair.gradients.items():
        expected = parts["mask"].gradients[name] + parts["class"].gradients[name]
        assert_close(gradient, expected, MODEL["float64"], name)


@pytest.mark.parametrize("of", [["class", "masks"], "mask", []])
def test_a_loss_that_does_not_exist_has_no_gradient(rng, of):
    _, oracle = narrow.twins(narrow.config("tiny"))
    with pytest.raises(ValueError, match="of: expected some of rpn_objectness, rpn_box, class"):
        oracle.gradients(*draw(rng, oracle.config), of=of)


def test_taped(rng):
    """A step that leaves its tape: `gradients` is its backward pass."""
    config = narrow.config("tiny")
    _, oracle = narrow.twins(config)
    step, record = draw(rng, config), structures.Stages()
    tape, variables, losses, priorities = oracle.taped(*step, record)
    assert priorities is step[2]
    assert {"conv2d", "pool", "smooth_l1", "binary_cross_entropy"} <= set(tape.names())
    assert variables.keys() == set(reference_parameters.trained_parameters(config))
    expected = oracle.gradients(*step, of=["class"])
    assert {name: loss.value for name, loss in losses.items()} == expected.losses
    tape.backward(losses["class"])
    assert tape.names() == []
    for name, gradient in expected.gradients.items():
        grad = variables[name].grad
        assert_equal(np.zeros_like(gradient) if grad is None else grad, gradient, name)
    assert variables["rpn.logits.weight"].grad is None
    assert record.P2.grad.any() and record.mask_logits.grad is None


def test_proposals_of_every_image(rng):
    _, oracle = narrow.twins(narrow.config("tiny"))
    proposals = [rpn.Proposals(np.zeros((0, 4)), np.zeros(0))]
    with pytest.raises(ValueError, match="those of 1 images for 2"):
        oracle.losses(*draw(rng, oracle.config), proposals=proposals)
