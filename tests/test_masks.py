"""Mask targets and pasting: against torchvision and detectron2; the twins against each other."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from support.image_golden import either, read
from support.strategies import boxes as boxes_across_borders

from accelerated import masks as accelerated
from accelerated.data import rle
from accelerated.kernels.eager import masks as eager
from accelerated.verify.equality import GOLDEN_OPERATOR, arbitrary_boxes, assert_close, assert_equal
from reference import masks as reference
from reference.config import preset

TORCHVISION, DETECTRON2 = (
    preset("torchvision_r50_fpn").mask_head,
    preset("detectron2_r50_fpn").mask_head,
)
HEIGHT, WIDTH = 19, 26
CONVENTIONS = ["torchvision", "detectron2"]


def packed(masks, height, width):
    """Pack masks [G, h, w] into bits [1, G, height, ceil(width / 8)], padded right and below."""
    padded = np.zeros((1, len(masks), height, width), dtype=bool)
    padded[0, :, : masks.shape[1], : masks.shape[2]] = masks
    return torch.from_numpy(np.packbits(padded, axis=-1))


def targets(masks, matched, boxes, config, size, padding=0, dtype=torch.float64, backend="torch"):
    """`accelerated.masks.targets` of one image's objects, every RoI valid."""
    count = len(boxes)
    return accelerated.targets(
        packed(masks, masks.shape[1] + padding, masks.shape[2] + padding),
        torch.zeros(count, dtype=torch.int64),
        torch.as_tensor(matched),
        torch.as_tensor(boxes, dtype=dtype),
        torch.ones(count, dtype=torch.bool),
        config,
        size,
        sizes=torch.tensor([masks.shape[1:]]),
        backend=backend,
    )


@either
@pytest.mark.parametrize("operator", ["tv/mask_targets", "d2/bitmask_targets"])
def test_targets_as_recorded(which, golden, shared_golden, operator):
    case = read(which, golden, shared_golden, operator)
    config = TORCHVISION if operator.startswith("tv") else DETECTRON2
    arguments = case["in.masks"], case.get("in.idx", np.arange(6)), case["in.boxes"], config, 28
    assert_close(reference.targets(*arguments), case["out.t"], GOLDEN_OPERATOR)
    assert_close(targets(*arguments), case["out.t"], GOLDEN_OPERATOR)


@given(
    boxes_across_borders(HEIGHT, WIDTH, min_count=1),
    st.booleans(),
    st.integers(1, 5),
    st.integers(0, 9),
    st.integers(0, 2**31),
)
def test_targets_twins(boxes, aligned, size, padding, seed):
    rng = np.random.default_rng(seed)
    masks, matched = rng.random((3, HEIGHT, WIDTH)) > 0.5, rng.integers(0, 3, len(boxes))
    config = replace(TORCHVISION, target_aligned=aligned)
    expected = reference.targets(masks, matched, boxes, config, size)
    assert_close(targets(masks, matched, boxes, config, size, padding), expected, 1e-12)
    in_32 = targets(masks, matched, boxes, config, size, padding, dtype=torch.float32)
    assert in_32.dtype == torch.float32
    if size in (1, 2, 4):  # elsewhere a float32 sample may fall on the other side of a cutoff
        assert_close(in_32, expected, arbitrary_boxes("float32", HEIGHT, WIDTH))


@settings(max_examples=10)
@given(
    boxes_across_borders(HEIGHT, WIDTH, min_count=1, max_count=3),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_targets_in_triton(boxes, aligned, size, seed):
    rng = np.random.default_rng(seed)
    masks, matched = rng.random((3, HEIGHT, WIDTH)) > 0.5, rng.integers(0, 3, len(boxes))
    config = replace(TORCHVISION, target_aligned=aligned)
    expected = reference.targets(masks, matched, boxes, config, size)
    assert_close(
        targets(masks, matched, boxes, config, size, padding=5, backend="triton"), expected, 1e-12
    )


def test_samples_on_the_cutoff_count():
    """A sample one pixel above the mask or on its lower end reads the border; beyond, it is 0."""
    masks = np.ones((1, HEIGHT, WIDTH), dtype=bool)
    above, below = (
        [[4, y, 5, y + 1] for y in (-1.5, -1.625)],
        [[4, HEIGHT + y, 5, HEIGHT + y + 1] for y in (-0.5, -0.375)],
    )
    sideways = [[WIDTH + x, 4, WIDTH + x + 1, 5] for x in (-0.5, -0.375)]
    boxes, matched = np.array([*above, *below, *sideways]), np.zeros(6, dtype=int)
    expected = reference.targets(masks, matched, boxes, TORCHVISION, 1)
    assert expected.ravel().tolist() == [1, 0] * 3
    for backend in ("torch", "triton"):
        assert_equal(
            targets(masks, matched, boxes, TORCHVISION, 1, padding=9, backend=backend), expected
        )


def test_binary_targets_include_one_half():
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[:, :, :2] = True
    boxes = np.array([[0.0, 0.0, 8.0, 8.0]])  # bins of four pixels, the left ones half covered
    for twin in (reference.targets, targets, partial(targets, backend="triton")):
        assert_equal(twin(masks, np.array([0]), boxes, DETECTRON2, 2), [[[1, 0], [1, 0]]])
        assert_close(
            twin(masks, np.array([0]), boxes, replace(DETECTRON2, target="soft"), 2)[0, 0, 0],
            0.5,
            1e-15,
        )


def test_a_mask_cut_by_the_image_border_does_not_fade_into_the_padding():
    masks, boxes = (
        np.ones((1, HEIGHT, WIDTH), dtype=bool),
        np.array([[WIDTH - 5.0, HEIGHT - 5.0, WIDTH, HEIGHT]]),
    )
    for config in (TORCHVISION, DETECTRON2):
        assert_equal(
            targets(masks, np.array([0]), boxes, config, 7, padding=20), np.ones((1, 7, 7))
        )


def test_targets_of_many_images_and_empty_slots(rng, backend):
    masks = rng.random((2, 3, HEIGHT, WIDTH)) > 0.5
    image, matched = np.array([0, 1, -1, 1, 0]), np.array([2, 0, 0, 1, 1])
    boxes = rng.random((5, 4)) * 8 + [0, 0, 8, 8]
    valid = image >= 0
    boxes[~valid] = np.nan
    found = accelerated.targets(
        torch.cat([packed(m, HEIGHT, WIDTH) for m in masks]),
        torch.from_numpy(image),
        torch.from_numpy(matched),
        torch.from_numpy(boxes),
        torch.from_numpy(valid),
        TORCHVISION,
        7,
        sizes=torch.tensor([[HEIGHT, WIDTH]] * 2),
        backend=backend,
    )
    for r in np.flatnonzero(valid):
        assert_close(
            found[r : r + 1],
            reference.targets(
                masks[image[r]], matched[r : r + 1], boxes[r : r + 1], TORCHVISION, 7
            ),
            1e-12,
        )
    assert not found[2].any()


def test_targets_in_chunks_and_under_autocast(rng, monkeypatch):
    masks, boxes = rng.random((3, HEIGHT, WIDTH)) > 0.5, rng.random((7, 4)) * 8 + [0, 0, 8, 8]
    expected = targets(masks, np.arange(7) % 3, boxes, TORCHVISION, 7, dtype=torch.float32)
    monkeypatch.setattr(eager, "CHUNK_PIXELS", 2 * HEIGHT * 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(
            targets(masks, np.arange(7) % 3, boxes, TORCHVISION, 7, dtype=torch.float32),
            expected,
            1e-6,
        )


@pytest.mark.parametrize("target", ["binary", "soft"])
def test_targets_read_only_the_window_around_a_roi(rng, monkeypatch, target):
    """On a CPU the rest of the mask is not read, which changes nothing."""
    masks = rng.random((3, 61, 90)) > 0.5
    corner = rng.uniform(-0.2, 1, (40, 2)) * [90, 61]
    boxes = np.concatenate([corner, corner + rng.random((40, 1)) ** 2 * [90, 61]], 1)
    boxes[::3] = boxes[::3].round()
    config, matched = replace(TORCHVISION, target=target), rng.integers(0, 3, 40)
    found = [targets(masks, matched, boxes, config, size, padding=7) for size in (1, 7, 28)]
    heights = []
    window = eager._window
    monkeypatch.setattr(
        eager, "_window", lambda *a: heights.append(window(*a)[1]) or (window(*a)[0] * 0, a[2])
    )
    for size, part in zip((1, 7, 28), found, strict=True):
        whole = targets(masks, matched, boxes, config, size, padding=7)
        assert_close(part, whole, 0 if target == "binary" else 1e-12)
    assert min(heights[::2]) < 61 / 2


@either
def test_polygon_targets_as_detectron2(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "d2/polygon_targets")
    polygons = [[points.reshape(-1, 2)] for points in case["in.polys"]]
    assert_equal(reference.polygon_targets(polygons, case["in.boxes"], 28), case["out.t"])


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(3, 8),
    st.sampled_from([1.0, 0.1, 1e-9]),
    st.integers(0, 2**31),
)
def test_polygons_are_cocos_pixel_for_pixel(height, width, corners, step, seed):
    points = np.round(np.random.default_rng(seed).uniform(-10, 45, (corners, 2)) / step) * step
    points[-1] = points[0] if seed % 2 else points[-1]  # closed explicitly
    encoded = coco.frPyObjects([points.ravel().tolist()], height, width)
    assert_equal(reference.rasterize_polygon(points, height, width), coco.decode(encoded)[:, :, 0])


@either
@pytest.mark.parametrize("operator", ["tv/paste", "d2/paste"])
def test_paste_as_recorded(which, golden, shared_golden, operator):
    case = read(which, golden, shared_golden, operator)
    convention = "torchvision" if operator.startswith("tv") else "detectron2"
    masks, boxes, shape = (
        case["in.masks"].reshape(-1, 28, 28),
        case["in.boxes"],
        (int(case["in.h"]), int(case["in.w"])),
    )
    soft = case["out.soft"].reshape(-1, *shape)
    for twin, convert in ((reference, np.asarray), (accelerated, torch.from_numpy)):
        assert_close(
            twin.paste_probabilities(convert(masks), convert(boxes), *shape, convention=convention),
            soft,
            GOLDEN_OPERATOR,
        )
        hard = twin.paste(convert(masks), convert(boxes), *shape, convention=convention)
        assert_equal(hard, case.get("out.hard", soft >= 0.5))


@given(
    boxes_across_borders(HEIGHT, WIDTH),
    st.sampled_from(CONVENTIONS),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_paste_twins(boxes, convention, size, seed):
    masks = np.random.default_rng(seed).random((len(boxes), size, size))
    soft = reference.paste_probabilities(masks, boxes, HEIGHT, WIDTH, convention=convention)
    arguments = torch.from_numpy(masks), torch.from_numpy(boxes), HEIGHT, WIDTH
    assert_close(accelerated.paste_probabilities(*arguments, convention=convention), soft, 1e-13)
    threshold = 0.4999  # no pasted value of these masks lies within rounding of it
    if (np.abs(soft - threshold) > 1e-9).all():
        expected = reference.paste(
            masks, boxes, HEIGHT, WIDTH, convention=convention, threshold=threshold
        )
        for backend in ("torch", "triton"):
            assert_equal(
                accelerated.paste(
                    *arguments, convention=convention, threshold=threshold, backend=backend
                ),
                expected,
            )
        assert_equal(expected, soft >= threshold)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("twin", [reference, accelerated])
def test_a_pixel_at_the_threshold_belongs_to_the_object(twin, convention):
    convert = torch.from_numpy if twin is accelerated else np.asarray
    masks, boxes = np.full((1, 4, 4), 0.5), np.array([[2.0, 3.0, 10.0, 11.0]])
    expected = np.zeros((1, 16, 16), dtype=bool)
    expected[:, 4:10, 3:9] = (
        True  # the outermost pixels lie closer to the mask's border than half a cell
    )
    found = twin.paste(convert(masks), convert(boxes), 16, 16, convention=convention)
    assert_equal(found[:, 4:10, 3:9], expected[:, 4:10, 3:9])
    above = twin.paste(
        convert(masks), convert(boxes), 16, 16, convention=convention, threshold=0.5 + 1e-9
    )
    assert not above.any()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("twin", [reference, accelerated])
def test_boxes_far_away_or_without_area(twin, convention):
    convert = torch.from_numpy if twin is accelerated else np.asarray
    boxes = np.array(
        [
            [-1e9, -1e9, 1e9, 1e9],
            [100, 100, 200, 200],
            [-50, 2, -20, 9],
            [5, 5, 5, 9.0],
            [9, 9, 5, 5],
        ]
    )
    found = twin.paste(
        convert(np.ones((5, 28, 28))), convert(boxes), HEIGHT, WIDTH, convention=convention
    )
    assert (
        found.shape == (5, HEIGHT, WIDTH)
        and found[0].all()
        and not found[1].any()
        and not found[2].any()
        and not found[4].any()
    )
    assert twin.paste(
        convert(np.ones((0, 28, 28))), convert(np.ones((0, 4))), 5, 6, convention=convention
    ).shape == (0, 5, 6)
    boxes[1, 2] = np.nan
    with pytest.raises(ValueError, match="row 1"):
        twin.paste(
            convert(np.ones((5, 28, 28))), convert(boxes), HEIGHT, WIDTH, convention=convention
        )
    with pytest.raises(ValueError, match="convention"):
        twin.paste(
            convert(np.ones((0, 28, 28))), convert(np.ones((0, 4))), 5, 6, convention="paper"
        )


@given(
    boxes_across_borders(HEIGHT, WIDTH),
    st.sampled_from(CONVENTIONS),
    st.sampled_from([0.5, 0.1, 0.0]),
    st.integers(0, 2**31),
)
def test_crops_hold_what_paste_returns(boxes, convention, threshold, seed):
    masks = torch.from_numpy(np.random.default_rng(seed).random((len(boxes), 5, 5)))
    arguments = masks, torch.from_numpy(boxes), HEIGHT, WIDTH
    keywords = {"convention": convention, "threshold": threshold}
    soft = accelerated.paste_probabilities(*arguments, convention=convention)
    whole = (soft >= threshold).numpy()
    for backend in ("torch", "triton"):
        crops = accelerated.paste_crops(*arguments, **keywords, backend=backend)
        for crop, mask in zip(crops, whole, strict=True):
            out, (h, w) = np.zeros((HEIGHT, WIDTH), bool), crop.pixels.shape
            out[crop.top : crop.top + h, crop.left : crop.left + w] = crop.pixels
            assert_equal(out, mask)
            runs = rle.of_crop(*crop)
            assert_equal(runs, rle.of_mask(mask))
            encoded: Any = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert rle.compress(runs) == encoded["counts"]


def test_crops_are_as_large_as_their_boxes():
    masks, boxes = torch.ones(2, 28, 28), torch.tensor([[100.0, 200, 156, 228], [0, 0, 20, 20]])
    for convention in CONVENTIONS:
        crops = accelerated.paste_crops(masks, boxes, 4000, 3000, convention=convention)
        assert [tuple(crop.pixels.shape) for crop in crops] == [(33, 63), (23, 23)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_crops_exist_for_one_image_at_a_time(backend):
    """Pasted in groups that fill the image once at most; a mask alone when it is asked for."""
    sides = [[0.0, 0, 20, 20], [0, 0, 9, 9], [0, 0, 40, 30], [3, 3, 9, 9], [1, 1, 5, 5]]
    boxes = torch.tensor(sides)
    masks = torch.from_numpy(np.random.default_rng(0).random((5, 5, 5)))
    keywords = {"convention": "detectron2", "backend": backend}
    crops = accelerated.paste_crops(masks, boxes, 30, 40, **keywords)
    whole = accelerated.paste(masks, boxes, 30, 40, **keywords)
    areas, calls, pasted = crops.areas, [], crops.pasted
    crops.pasted = lambda rows: (calls.append(rows), pasted(rows))[1]
    everything = list(crops)
    groups = [sum(areas[rows]) for rows in calls]
    assert sum(groups) == sum(areas) > 1200 and len(groups) < 5 and max(groups) <= 1200
    for index in (0, 3, -1):
        calls.clear()
        assert_equal(crops[index].pixels, everything[index].pixels)
        assert len(calls) == 1 and calls[0].stop - calls[0].start == 1
    assert [crop.top for crop in crops[1:3]] == [crop.top for crop in everything[1:3]]
    with pytest.raises(IndexError):
        crops[5]
    for crop, mask in zip(everything, whole, strict=True):
        rows, columns = crop.pixels.shape
        inside = mask[crop.top :, crop.left :][:rows, :columns]
        assert_equal(crop.pixels, inside)
        assert mask.sum() == inside.sum()
    assert list(accelerated.paste_crops(masks[:0], boxes[:0], 30, 40, **keywords)) == []


def test_cropping_undoes_pasting():
    """A disc pasted into a box is cropped out again: bin centres are the mask's cells."""
    y, x = np.mgrid[:28, :28] - 13.5
    disc = (x * x + y * y < 100)[None]
    boxes = np.array([[3.0, 5.0, 59.0, 61.0]])
    image = reference.paste(disc.astype(np.float64), boxes, 64, 64, convention="detectron2")
    back = reference.targets(image, np.array([0]), boxes, DETECTRON2, 28)
    assert_equal(back, disc)
