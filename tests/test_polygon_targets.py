"""Mask targets drawn from outlines: the operator, the way of the outlines to it, and training."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import narrow, small
from support.image_golden import either, read

from accelerated import masks as accelerated
from accelerated import transform as preparation
from accelerated.command_line import cli
from accelerated.data.coco import CocoDataset
from accelerated.data.loader import loader
from accelerated.data.moves import flip
from accelerated.data.padding import Shapes
from accelerated.data.synthetic import ShapesDataset
from accelerated.engine import checkpoint
from accelerated.structures import Target
from accelerated.verify import training
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference import mask_head, structures, transform
from reference import masks as reference
from reference.config import override, preset

SQUARE = np.array([[8.0, 8.0], [24.0, 8.0], [24.0, 24.0], [8.0, 24.0]])
DIAMOND = np.array([[20.0, 10.0], [30.0, 20.0], [20.0, 30.0], [10.0, 20.0]])


def packed(polygons, more_points=0, more_objects=0):
    """Pack the outlines of one image's objects like a Batch with some empty slots."""
    points, rings, parts = preparation.pack_polygons(polygons)
    slots = len(points) + more_points
    rings = torch.cat([rings, rings[-1:].expand(slots // 3 + 1 - len(rings))])
    return (
        torch.cat([points, torch.full((more_points, 2), 7.0, dtype=torch.float64)])[None],
        rings[None],
        torch.cat([parts, parts[-1:].expand(more_objects)])[None],
    )


def drawn(polygons, matched, boxes, size, backend="torch", **padding):
    """`accelerated.masks.polygon_targets` of one image's objects, every RoI valid."""
    return accelerated.polygon_targets(
        *packed(polygons, **padding),
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.as_tensor(matched),
        torch.as_tensor(boxes),
        torch.ones(len(boxes), dtype=torch.bool),
        size,
        backend=backend,
    )


def scene(seed, step, most=8):
    """Draw the outlines of four objects: crossing themselves, in parts, far away, or a point."""
    rng = np.random.default_rng(seed)
    polygons = []
    for count in (1, 3, 0, 2):
        outlines = [rng.uniform(-20, 60, (rng.integers(3, most), 2)) for _ in range(count)]
        polygons.append([np.round(points / step) * step for points in outlines])
    polygons[3][0][:] = polygons[3][0][0]
    corner = rng.uniform(-5, 30, (6, 2))
    sides = rng.choice([0.0, 0.05, 1.0, 7.0, 20.5, 28.0], (6, 2))
    return polygons, rng.integers(0, 4, 6), np.concatenate([corner, corner + sides], axis=1)


def check(seed, size, step, dtype, backend, **padding):
    polygons, matched, boxes = scene(seed, step)
    boxes = boxes.astype(dtype)
    found = drawn(polygons, matched, boxes, size, backend, **padding)
    assert found.dtype == torch.as_tensor(boxes).dtype
    expected = reference.polygon_targets([polygons[g] for g in matched], boxes, size)
    assert_equal(found, expected)


STEPS = st.sampled_from([1e-9, 0.1, 1 / 7, 0.5, 1.0])
SIZES = st.sampled_from([1, 2, 14, 28, 28, 32, 33, 56])


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), SIZES, STEPS, st.sampled_from(["float32", "float64"]), st.integers(0, 5)
)
def test_twins(seed, size, step, dtype, padding):
    check(seed, size, step, dtype, "torch", more_points=padding, more_objects=padding)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_thin_roi_counts_as_a_tenth_of_a_pixel_wide(backend):
    """The outline begins 0.02 pixels right of the RoIs, in the second of ten columns or rows."""
    boxes = np.array([[7.98, 10.0, 8.03, 18.0], [10.0, 7.98, 18.0, 8.03]])
    across = np.arange(10)[None].repeat(10, 0) >= 2
    expected = np.stack([across, across.T]).astype(float)
    assert_equal(reference.polygon_targets([[SQUARE]] * 2, boxes, 10), expected)
    assert_equal(drawn([[SQUARE]], [0, 0], boxes, 10, backend), expected)


@settings(max_examples=8)
@given(st.integers(0, 2**31), SIZES, STEPS, st.sampled_from(["float32", "float64"]))
def test_in_triton(seed, size, step, dtype):
    check(seed, size, step, dtype, "triton", more_points=4)


@either
def test_as_detectron2(which, golden, shared_golden, backend):
    case = read(which, golden, shared_golden, "d2/polygon_targets")
    polygons = [[points.reshape(-1, 2)] for points in case["in.polys"]]
    found = drawn(polygons, np.arange(len(polygons)), case["in.boxes"], 28, backend)
    assert_equal(found, case["out.t"])


def test_thousands_of_points(rng, backend, monkeypatch):
    # Interpreted, Triton takes seconds.
    count = {"torch": 5000, "triton": 1000}[backend]
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    points = 300 + rng.uniform(150, 250, (count, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    boxes = np.array([[40.0, 55.0, 555.0, 560.0], [300.0, 300.0, 410.0, 320.0]])
    expected = reference.polygon_targets([[points]] * 2, boxes, 28)
    assert 0.3 < expected.mean() < 0.9
    # A chunk holds one RoI.
    monkeypatch.setattr("accelerated.kernels.eager.polygons.CHUNK", 1)
    assert_equal(drawn([[points]], np.zeros(2, int), boxes, 28, backend), expected)


def test_many_images_empty_slots_and_no_roi(backend):
    images = [packed([[DIAMOND, SQUARE], []]), packed([[], [SQUARE, DIAMOND]])]
    points, rings, parts = (torch.cat(x) for x in zip(*images, strict=True))
    image, matched = torch.tensor([0, 1, -1, 1, 0]), torch.tensor([0, 1, -1, 0, 1])
    rois = torch.tensor([[4.0, 6.0, 26.0, 31.0]] * 5)
    rois[2] = torch.nan
    arguments = points, rings, parts, image, matched, rois, image >= 0, 28
    found = accelerated.polygon_targets(*arguments, backend=backend)
    expected = reference.polygon_targets([[SQUARE, DIAMOND]], rois[:1].numpy(), 28)[0]
    assert_equal(found[0], expected)
    assert_equal(found[1], expected)
    assert not found[2:].any(), "an empty slot, and two objects without outlines"
    nothing = (x[:0] for x in arguments[3:7])
    none = accelerated.polygon_targets(points, rings, parts, *nothing, 28, backend=backend)
    assert none.shape == (0, 28, 28)


def test_the_operator_is_registered_in_full():
    _, matched, boxes = scene(0, 1.0)
    valid = torch.ones(6, dtype=torch.bool)
    rows = torch.zeros(6, dtype=torch.int64), torch.from_numpy(matched % 2)
    arguments = *packed([[SQUARE], [DIAMOND]]), *rows, torch.from_numpy(boxes), valid, 28, "torch"
    torch.library.opcheck(torch.ops.maskrcnn.polygon_targets.default, arguments)


@pytest.mark.parametrize(("shape", "most"), [("steps", 0), ("slanted", 4e-3)])
def test_a_flipped_outline_is_a_flipped_target(rng, shape, most):
    """Exactly for edges along the axes; on others, COCO rounds halves to the same side."""
    polygons = rng.integers(0, 160, (50, 6, 2)) / 4
    if shape == "steps":
        x, y = np.sort(polygons[:, :3], axis=1).transpose(2, 1, 0)
        polygons = np.stack([x[[0, 1, 1, 2, 2, 0]], y[[0, 0, 1, 1, 2, 2]]]).T
    boxes = rng.integers(0, 64, (50, 4)) / 8 + np.array([0, 0, 30, 30])
    image, masks = np.zeros((40, 40, 3), np.uint8), torch.zeros(50, 40, 40, dtype=torch.bool)
    labels = torch.ones(50, dtype=torch.int64)
    target = Target(torch.from_numpy(boxes), labels, masks, [[points] for points in polygons])
    _, mirrored = flip(image, target)
    assert_equal(np.stack(flip(image, mirrored)[1].polygons), polygons[:, None])
    before = drawn(target.polygons, np.arange(50), boxes, 28)
    after = drawn(mirrored.polygons, np.arange(50), mirrored.boxes, 28)
    differing = (before != after.flip(2)).double().mean()
    assert 0.1 < before.mean() < 0.9 and differing <= most, differing


def mixed(rng):
    """Draw a Target of three objects in 40 x 60 pixels, the second without outlines."""
    boxes = np.array([[8.0, 8, 24, 24], [10, 10, 30, 30], [5, 5, 30, 30]])
    return structures.Target(
        boxes,
        np.array([1, 2, 3]),
        rng.random((3, 40, 60)) > 0.5,
        [[SQUARE], None, [DIAMOND, SQUARE]],
    )


@pytest.mark.parametrize("name", ["tiny", "detectron2_r50_fpn"])
def test_an_object_without_outlines_has_the_binary_target_of_its_mask(rng, name, backend):
    config = override(preset(name), "transform.min_size=[60]")
    config = override(config, "mask_head.target=polygon")
    image, target = rng.uniform(0, 255, (40, 60, 3)), mixed(rng)
    _, prepared = transform.prepare(image, target, config.transform)
    assert_close(prepared.polygons[0][0], SQUARE * prepared.boxes[0, 2] / 24, 1e-7)
    matched, rois = (
        np.array([1, 0, 2, 1]),
        prepared.boxes[[1, 0, 2, 0]] + rng.uniform(-3, 3, (4, 4)),
    )
    samples = SimpleNamespace(matched=matched, labels=np.ones(4, int), rois=rois)
    expected = mask_head.targets([prepared], [samples], config.mask_head, 14)
    binary = replace(config.mask_head, target="binary")
    sampled = reference.targets(prepared.masks, matched, rois, binary, 14)
    assert_equal(expected[[0, 3]], sampled[[0, 3]])
    assert (expected[1:3] != sampled[1:3]).any()

    fast = preparation.prepare(image, target, config.transform, dtype=torch.float64)
    batch = preparation.collate([fast], config.transform, [(40, 60)], max_objects=5, max_points=30)
    assert batch.points.shape == (1, 30, 2) and batch.rings.shape == (1, 11)
    found = accelerated_targets(batch, matched, rois, config.mask_head, backend)
    assert_equal(found, expected)


def accelerated_targets(batch, matched, rois, head, backend="torch"):
    """Targets of RoIs of the first image, and of one slot that is empty."""
    from accelerated.mask_head import targets

    image = torch.tensor([0] * len(rois) + [-1])
    matched = torch.from_numpy(np.append(matched, -1))
    rois = torch.from_numpy(np.concatenate([rois, np.full((1, 4), np.nan)]))
    out = targets(batch, image, matched, rois, head, 14, backend)
    assert not out[-1].any()
    return out[:-1]


@pytest.mark.parametrize("twin", [transform, preparation])
@pytest.mark.parametrize(
    "polygons",
    [[None], [SQUARE, None, None], [[SQUARE[:2]], None, None], [[SQUARE * np.inf], None, None]],
)
def test_bad_polygons_are_refused(rng, twin, polygons):
    target = replace(mixed(rng), polygons=polygons)
    with pytest.raises(ValueError, match="polygons: 3 labels need"):
        twin.prepare(np.zeros((40, 60, 3), np.uint8), target, preset("tiny").transform)


def test_slots_for_points_are_as_many_as_asked_for(rng):
    config = override(preset("tiny"), "transform.min_size=[]").transform
    image = np.zeros((40, 60, 3), np.uint8)
    prepared = [
        preparation.prepare(image, mixed(rng), config),
        preparation.prepare(image, None, config),
    ]
    batch = preparation.collate(prepared, config, [(40, 60)] * 2)
    assert batch.points.shape == (2, 12, 2) and batch.parts.tolist() == [[0, 1, 1, 3], [0] * 4]
    assert batch.rings.tolist() == [[0, 4, 8, 12, 12], [0] * 5]
    with pytest.raises(ValueError, match=r"12 points .* max_points is 11"):
        preparation.collate(prepared, config, [(40, 60)] * 2, max_points=11)


@pytest.fixture
def coco(tmp_path):
    """Return a function that writes a data set of four images; with one RLE mask if asked."""

    def write(with_rle=False):
        source = ShapesDataset(4, size=64)
        annotations, images = source.write_coco(tmp_path / f"shapes{with_rle}")
        data = json.loads(annotations.read_text())
        for number, a in enumerate(data["annotations"]):
            x, y, w, h = a["bbox"]
            if number or not with_rle:
                a["segmentation"] = [
                    [x, y, x + w, y, x + w, y + h],
                    [x, y, x + 0.4 * w, y + h, x, y + h],
                ]
        annotations.write_text(json.dumps(data))
        return annotations, images

    return write


def test_outlines_travel_from_the_file_to_the_batch(coco):
    config = override(small.config(), "mask_head.target=polygon")
    dataset = CocoDataset(*coco())
    assert dataset.outlined
    assert dataset.max_points == 6 * dataset.max_objects
    common = {"batch_size": 2, "training": True, "iterations": 4}
    batches = list(loader(dataset, config, **common, shapes=Shapes(((64, 64),), (9,))))
    assert {tuple(b.points.shape) for b in batches} == {(2, dataset.max_points, 2)}
    assert {tuple(b.masks.shape) for b in batches} == {(2, 9, 0, 0)}, "nobody reads the masks"
    for batch in batches:
        for points, parts, boxes, valid in zip(
            batch.points, batch.parts, batch.boxes, batch.valid, strict=True
        ):
            assert parts.diff().tolist() == (2 * valid).tolist()
            corners = points[: 6 * int(valid.sum())].reshape(-1, 6, 2)
            assert_close(torch.cat([corners.amin(1), corners.amax(1)], 1), boxes[valid], 1e-6)

    soft = next(iter(loader(dataset, small.config(), **common)))
    assert soft.points is None and soft.masks.shape[2] == 64
    partly = CocoDataset(*coco(with_rle=True))
    assert not partly.outlined and partly[0].target.polygons[0] is None
    batch = next(iter(loader(partly, config, **common)))
    assert batch.points is not None and batch.masks.shape[2] == 64


def test_left_out_masks_change_nothing(coco):
    config = override(small.config(), "mask_head.target=polygon")
    _, target, _ = CocoDataset(*coco())[0]
    image, rois = np.zeros((64, 64, 3), np.uint8), target.boxes.double().numpy() + 0.3
    with_masks, without = (
        preparation.collate_pixels(
            [preparation.prepare_pixels(image, target, config.transform, masks=masks)],
            config.transform,
            [(64, 64)],
            [1],
        )
        for masks in (True, False)
    )
    assert without.masks.shape[2:] == (0, 0) and with_masks.masks.shape[2] == 64
    found = [
        accelerated_targets(batch, np.arange(len(rois)), rois, config.mask_head)
        for batch in (with_masks, without)
    ]
    assert_equal(*found)
    assert 0.2 < found[0].mean() < 0.95


def test_a_training_step_agrees(rng, monkeypatch):
    """With the losses' sampling: twins, flows of gradients and all."""
    monkeypatch.setattr(training, "BACKENDS", ("torch",))
    config = override(small.config(), "mask_head.target=polygon")
    target = replace(mixed(rng), masks=rng.random((3, 64, 64)) > 0.5)
    torch.manual_seed(0)
    model = narrow.MaskRCNN(config)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8)]
    report = training.compare(model, images, [target])
    assert report.passed, report.summary
    without = training.compare(model, images, [replace(target, polygons=None)])
    values = [r.sections["losses"] for r in (report, without)]
    masks = [next(row.values["NumPy"] for row in rows if row.name == "mask") for rows in values]
    assert abs(masks[0] - masks[1]) > 1e3 * MODEL["float64"] * masks[0], "the outlines are read"


def test_training_from_the_command_line(coco, tmp_path, monkeypatch, capsys):
    annotations, images = coco(with_rle=True)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["maskrcnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        text = capsys.readouterr()
        assert not stop.value.code, text.err
        return text.out

    changes = ("mask_head.target=polygon", "transform.min_size=[64]", "transform.max_size=64")
    words = [word for change in changes for word in ("--set", change)]
    data = ("--data", annotations, "--images", images)
    run("train", *data, "--output", tmp_path / "run", *words, "--iterations", 2, "--batch-size", 2)
    assert checkpoint.read(tmp_path / "run").config.mask_head.target == "polygon"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("mask", 0) > 0 for line in log), log
    assert "ready for training" in run("inspect", *data)
    monkeypatch.setattr(training, "BACKENDS", ("torch",))
    checked = ("--data", annotations, "--proposals", 2, "--device", "cpu")
    out = run("verify", "--train", tmp_path / "run", images / "000002.png", *checked)
    assert "agree in all 5 losses" in out
