"""Our operators under torchvision: against a stand-in always, against torchvision where it is."""

import sys
import threading

import numpy as np
import pytest
import torch
from support import torchvision_stand_in

import reference.masks
import reference.nms
import reference.roi_align
import reference.roi_pool
from accelerated.interop import substitution, use_our_operators
from accelerated.verify.equality import (
    GOLDEN_MODEL,
    GOLDEN_OPERATOR,
    POINTWISE,
    REDUCTION,
    assert_close,
    assert_equal,
    error,
)

THEIRS = "theirs"
DETECTION = "torchvision.models.detection"


@pytest.fixture
def modules(monkeypatch):
    """The stand-in's modules by name."""
    return torchvision_stand_in.install(monkeypatch)


def uses_ours(modules):
    """Whether every name of the modules stands for ours, or none does."""
    ours = {
        name in substitution._OURS and value is substitution._OURS[name]
        for module in modules.values()
        for name, value in vars(module).items()
        if name in substitution._OURS and callable(value)
    }
    assert len(ours) == 1
    return ours.pop()


# ---- The replacement: a stand-in for torchvision


def test_names_are_replaced_within_and_only_there(modules):
    assert not uses_ours(modules)
    with use_our_operators():
        assert uses_ours(modules)
    assert not uses_ours(modules)
    assert modules["somebody.layers"].ROIAlign().forward(None, None) == THEIRS


def test_an_exception_undoes_it_and_passes(modules):
    with pytest.raises(KeyError, match="mine"), use_our_operators():
        raise KeyError("mine")
    assert not uses_ours(modules)


def test_it_decorates_functions(modules):
    assert use_our_operators()(lambda: uses_ours(modules))()
    assert not uses_ours(modules)


def test_of_nested_ones_the_innermost_chooses_the_backend(modules, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        substitution.nms_operators, "nms", lambda *arguments: chosen.append(arguments[3])
    )
    ops = modules["torchvision.ops"]
    with use_our_operators():
        ops.nms(None, None, 0.5)
        with use_our_operators("torch"):
            ops.nms(None, None, 0.5)
        ops.nms(None, None, 0.5)
        outlives = ops.nms
    outlives(None, None, 0.5)
    assert chosen == ["auto", "torch", "auto", "auto"] and not uses_ours(modules)


def test_it_lasts_until_the_last_thread_leaves(modules):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with use_our_operators():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with use_our_operators():
        thread.start()
        assert entered.wait(60)
    assert uses_ours(modules)
    leave.set()
    thread.join()
    assert not uses_ours(modules)


def test_names_that_are_imported_meanwhile_are_restored(modules, monkeypatch):
    with use_our_operators():
        late = type(sys)("late")
        exec("from torchvision.ops import nms", late.__dict__)
        monkeypatch.setitem(sys.modules, "late", late)
        assert late.nms is substitution.nms
    assert late.nms(None, None, 0.5) == THEIRS


@pytest.mark.parametrize(
    "change",
    [
        ("torchvision.ops.roi_align", "return roi_align(input", "return _align(input"),
        ("torchvision.ops.roi_pool", "return roi_pool(", "return _pool("),
        ("torchvision.ops.poolers", "class MultiScaleRoIAlign", "class Other"),
        ("torchvision.ops.poolers", "return _multiscale_roi_align(", "return _pool("),
        ("torchvision.ops.boxes", "def nms(boxes, scores,", "def nms(boxes, score,"),
        (f"{DETECTION}.rpn", "box_ops.batched_nms", "box_ops.other_nms"),
        # Another function of the same name.
        (f"{DETECTION}.roi_heads", "box_ops, roi_align", "box_ops\nroi_align = box_ops.nms"),
        (f"{DETECTION}.transform", "return paste_masks_in_image(", "return paste("),
    ],
    ids=lambda change: change[0].rpartition(".")[2],
)
def test_a_version_whose_names_moved_is_an_error(monkeypatch, change):
    modules = torchvision_stand_in.install(monkeypatch, [change])
    before = {name: dict(vars(module)) for name, module in modules.items()}
    with pytest.raises(RuntimeError, match=rf"torchvision 0\.0: {change[0]}"), use_our_operators():
        pass
    assert before == {name: vars(module) for name, module in modules.items()}


def test_without_torchvision_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"), use_our_operators():
        pass


def test_an_unknown_backend_is_an_error(modules):
    with pytest.raises(ValueError, match="expected 'auto', 'torch' or 'triton'"):
        use_our_operators("cuda").__enter__()
    assert not uses_ours(modules)


# ---- The functions, called as torchvision's models and detectron2 call them, against the oracle


def scene(rng, dtype=torch.float64):
    """Features [2, 3, 12, 10], and boxes of both images: as [5, 5] rows and as a list."""
    features = torch.tensor(rng.normal(size=(2, 3, 12, 10))).to(dtype)
    corner = rng.integers(-2, 12, (5, 2)) / 1.0
    boxes = torch.tensor(np.concatenate([corner, corner + rng.integers(1, 16, (5, 2))], 1))
    index = torch.tensor([0, 0, 0, 1, 1])
    rows = torch.cat([index[:, None], boxes], 1).to(dtype)
    return features, rows, [boxes[:3].to(dtype), boxes[3:].to(dtype)]


@pytest.mark.parametrize("given", ["rows", "list"])
@pytest.mark.parametrize("ratio", [-1, 0, 2])
def test_roi_align(modules, rng, given, ratio):
    features, rows, listed = scene(rng)
    operator = modules["torchvision.ops.roi_align"].RoIAlign((2, 3), 0.5, ratio, True)
    features.requires_grad_()
    with use_our_operators():
        out = operator.forward(features, rows if given == "rows" else listed)
    settings = {"output_size": (2, 3), "spatial_scale": 0.5, "aligned": True}
    settings["sampling_ratio"] = max(ratio, 0)
    oracle = [features.detach().numpy(), rows[:, 1:].numpy(), rows[:, 0].numpy().astype(int)]
    assert_close(out, reference.roi_align.roi_align(*oracle, **settings), GOLDEN_OPERATOR)
    grad_out = torch.tensor(rng.normal(size=out.shape))
    # Also after the `with`.
    (grad,) = torch.autograd.grad(out, features, grad_out)
    expected = reference.roi_align.roi_align_backward(grad_out.numpy(), *oracle, **settings)
    assert_close(grad, expected, GOLDEN_OPERATOR)


def test_roi_pool_and_the_pyramid(modules, rng):
    features, rows, listed = scene(rng)
    array, boxes, index = features.numpy(), rows[:, 1:].numpy(), rows[:, 0].numpy().astype(int)
    levels = torch.tensor([0, 1, 1, 0, 1])
    with use_our_operators():
        pooled = modules["torchvision.ops.roi_pool"].RoIPool().forward(features, rows)
        pyramid = modules["torchvision.ops.poolers"].MultiScaleRoIAlign()
        both = pyramid.forward(
            [features, features[..., ::2, ::2]], listed, [0.5, 0.25], lambda _: levels
        )
        single = pyramid.forward([features], listed, [0.5], lambda _: 1 / 0)
    expected = reference.roi_pool.roi_pool(array, boxes, index, output_size=2, spatial_scale=0.5)
    assert_equal(pooled, expected)
    settings = {"output_size": 2, "sampling_ratio": 2, "aligned": False}
    per_level = [
        reference.roi_align.roi_align(x, boxes, index, spatial_scale=scale, **settings)
        for x, scale in ((array, 0.5), (array[..., ::2, ::2], 0.25))
    ]
    chosen = np.where(levels[:, None, None, None] == 0, *per_level)
    assert_close(both, chosen, GOLDEN_OPERATOR)
    assert_close(single, per_level[0], GOLDEN_OPERATOR)


def test_levels_of_different_dtypes(modules, rng):
    features, _, listed = scene(rng, torch.float32)
    maps, levels = [features.bfloat16(), features[..., ::2, ::2]], torch.tensor([0, 1, 1, 0, 1])
    with use_our_operators():
        pool = modules["torchvision.ops.poolers"].MultiScaleRoIAlign().forward
        mixed = pool(maps, listed, [0.5, 0.25], lambda _: levels)
        wide = pool([x.float() for x in maps], listed, [0.5, 0.25], lambda _: levels)
    # Only the result is rounded.
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, wide.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_suppression(modules, rng, dtype):
    corner = rng.integers(0, 30, (60, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 20, (60, 2))], 1).astype(float)
    scores, group = rng.permutation(60) / 64.0, rng.integers(0, 3, 60)
    ours = [torch.tensor(boxes).to(dtype), torch.tensor(scores).to(dtype)]
    with use_our_operators():
        kept = modules["torchvision.ops"].nms(*ours, 0.47)
        heads = modules[f"{DETECTION}.roi_heads"].RoIHeads()
        kept_in_groups = heads.postprocess_detections(*ours, torch.tensor(group))
        none = modules["torchvision.ops"].nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert_equal(kept, reference.nms.nms(boxes, scores, 0.47))
    assert_equal(kept_in_groups, reference.nms.batched_nms(boxes, scores, group, 0.5))
    assert len(kept) < len(kept_in_groups) < 60 and none.tolist() == []


def test_pasting(modules, rng):
    probabilities = rng.uniform(size=(4, 1, 7, 7))
    boxes = np.array([[1.0, 2, 9, 8], [-3, 4, 5, 30], [30, 2, 20, 3], [2.3, 2.9, 2.4, 3]])
    shape = (12, 17)
    postprocess = modules[f"{DETECTION}.transform"].GeneralizedRCNNTransform().postprocess
    with use_our_operators(), torch.autocast("cpu", torch.bfloat16):
        pasted, single = (
            postprocess(torch.tensor(probabilities).to(dtype), torch.tensor(boxes).to(dtype), shape)
            for dtype in (torch.float64, torch.float32)
        )
        empty = postprocess(torch.zeros(0, 1, 7, 7), torch.zeros(0, 4), shape)
        with pytest.raises(ValueError, match="padding: expected 1"):
            modules[f"{DETECTION}.roi_heads"].paste_masks_in_image(None, None, (1, 1), padding=2)
    expected = reference.masks.paste_probabilities(
        probabilities[:, 0], boxes, 12, 17, convention="torchvision"
    )
    assert_close(pasted, expected[:, None], GOLDEN_OPERATOR)
    # Autocast leaves float64 alone, but not float32.
    assert_close(single, expected[:, None], POINTWISE["float32"])
    assert empty.shape == (0, 1, 12, 17)


def test_rows_of_another_shape_are_an_error(modules):
    with use_our_operators(), pytest.raises(ValueError, match=r"expected \[R, 5\]"):
        modules["torchvision.ops"].roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(3, 4), 2)


# ---- torchvision itself


@pytest.fixture
def vision():
    """torchvision; skips where it is not installed."""
    return pytest.importorskip("torchvision")


def narrow_model(vision, device, **settings):
    """A Mask R-CNN of torchvision with a small backbone, in float64; the same every time."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 7, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, 2, 1)
    )

    class Backbone(torch.nn.Module):
        out_channels = 16

        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            x = self.body(x)
            return {"0": x, "1": torch.nn.functional.avg_pool2d(x, 2)}

    model = vision.models.detection.MaskRCNN(
        Backbone(),
        num_classes=4,
        min_size=96,
        max_size=128,
        rpn_anchor_generator=vision.models.detection.anchor_utils.AnchorGenerator(
            ((16, 32), (48, 64)), ((0.5, 1.0, 2.0),) * 2
        ),
        box_roi_pool=vision.ops.MultiScaleRoIAlign(["0", "1"], 7, 2),
        mask_roi_pool=vision.ops.MultiScaleRoIAlign(["0", "1"], 14, 2),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=32,
        box_score_thresh=0.0,
        box_detections_per_img=20,
        **settings,
    )
    return model.double().to(device)


def pictures(rng, device):
    images = [
        torch.tensor(rng.uniform(size=(3, 96, 110))),
        torch.tensor(rng.uniform(size=(3, 100, 90))),
    ]
    targets = []
    for image in images:
        boxes = torch.tensor([[5.0, 6, 60, 50], [30, 30, 85, 90]], dtype=torch.float64)
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        for mask, box in zip(masks, boxes.int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks})
    on_device = [{name: x.to(device) for name, x in target.items()} for target in targets]
    return [image.to(device) for image in images], on_device


def training_step(model, images, targets):
    """Losses and gradients by name, with the same random samples every time."""
    torch.manual_seed(1)
    model.zero_grad()
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters()}


def test_detections_equal_torchvisions(vision, rng, device):
    model, (images, _) = narrow_model(vision, device).eval(), pictures(rng, device)
    with torch.no_grad():
        expected = model(images)
        with use_our_operators():
            actual = model(images)
    for a, e in zip(actual, expected, strict=True):
        assert len(e["scores"]) == 20
        assert_equal(a["labels"], e["labels"])
        for name in ("boxes", "scores", "masks"):
            assert_close(a[name], e[name], GOLDEN_MODEL, name)


def test_a_training_step_equals_torchvisions(vision, rng, device):
    model, scene = narrow_model(vision, device), pictures(rng, device)
    expected = {
        name: value.detach().clone() for name, value in training_step(model, *scene).items()
    }
    with use_our_operators():
        actual = training_step(model, *scene)
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        assert_close(actual[name], value, GOLDEN_MODEL, name)


def test_bfloat16_which_torchvision_cannot(vision, rng, device):
    model, (images, targets) = narrow_model(vision, device), pictures(rng, device)
    with use_our_operators():
        exact = training_step(model, images, targets)["loss_mask"].item()
    model.bfloat16()
    images = [image.bfloat16() for image in images]
    for target in targets:
        target["boxes"] = target["boxes"].float()
    with pytest.raises(RuntimeError):
        training_step(model, images, targets)
    with use_our_operators():
        first, second = ({**training_step(model, images, targets)} for _ in range(2))
        with torch.no_grad():
            detections = model.eval()(images)
    assert error(first["loss_mask"], exact) < 0.05
    # The gradients of the second step replace those of the first one in `p.grad`.
    assert all(torch.equal(first[name], second[name]) for name in ("loss_mask", "loss_box_reg"))
    assert detections[0]["masks"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_equal_torchvisions(vision, rng, device, dtype):
    """Against torchvision in float64, which has no bfloat16 kernels."""
    ops, name = vision.ops, str(dtype).removeprefix("torch.")
    features, rows, _ = (scene(rng)[i] for i in range(3))
    features, rows = features.to(dtype).to(device), rows.to(device)
    calls = {
        "roi_align": lambda x: ops.roi_align(x, rows.to(x.dtype), (3, 2), 0.5, -1, False),
        "roi_align, aligned": lambda x: ops.RoIAlign(2, 0.5, 2, True)(x, rows.to(x.dtype)),
        "roi_pool": lambda x: ops.RoIPool(2, 0.5)(x, rows.to(x.dtype)),
    }
    for what, call in calls.items():
        exact = features.double().requires_grad_()
        expected = call(exact)
        grad_out = torch.tensor(rng.normal(size=expected.shape), device=device).to(dtype)
        (expected_grad,) = torch.autograd.grad(expected, exact, grad_out.double())
        ours = features.clone().requires_grad_()
        with use_our_operators():
            out = call(ours)
        (grad,) = torch.autograd.grad(out, ours, grad_out)
        assert out.dtype == dtype
        assert_close(out, expected, POINTWISE[name], what)
        assert_close(grad, expected_grad, REDUCTION[name], f"gradient of {what}")
