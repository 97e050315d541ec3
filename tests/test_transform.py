"""Transform: against torchvision, detectron2 and Pillow; the twins against each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_golden import either, read

from accelerated import structures as accelerated_structures
from accelerated import transform as accelerated
from accelerated.verify.equality import GOLDEN_OPERATOR, assert_close, assert_equal
from reference import structures as reference_structures
from reference import transform as reference
from reference.config import Transform, preset

TORCHVISION, DETECTRON2 = (
    preset("torchvision_r50_fpn").transform,
    preset("detectron2_r50_fpn").transform,
)
sides = st.integers(1, 200)


def unpacked(target, width):
    return np.unpackbits(target.masks.numpy(), axis=-1)[..., :width].astype(bool)


def example(rng, height=37, width=50, count=3, dtype=np.uint8):
    image = (rng.random((height, width, 3)) * 255).astype(dtype)
    low = rng.random((count, 2)) * (width / 2, height / 2)
    boxes = np.concatenate(
        [low, low + 1 + rng.random((count, 2)) * (width / 3, height / 3)], axis=1
    )
    return image, reference_structures.Target(
        boxes, rng.integers(1, 5, count), rng.random((count, height, width)) > 0.5
    )


@either
def test_resized_shape_as_detectron2(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "d2/resize_shape")
    config = replace(DETECTRON2, max_size=int(case["in.mx"]))
    for shape, expected in zip(case["in.hw"].tolist(), case["out.hw"].tolist(), strict=True):
        for twin in (reference, accelerated):
            assert list(twin.resized_shape(*shape, int(case["in.short"]), config)) == expected


def test_truncation_loses_a_pixel_at_154_heights():
    short = [
        h for h in range(50, 3000) if reference.resized_shape(h, h, 800, TORCHVISION)[0] == 799
    ]
    assert len(short) == 154 and short[:4] == [97, 161, 167, 193]
    # One scaling step would give 65.
    assert reference.resized_shape(120, 2480, 800, DETECTRON2)[0] == 64


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 900),
    st.integers(1, 1400),
    st.sampled_from([TORCHVISION, DETECTRON2]),
)
def test_resized_shape_twins(height, width, min_size, max_size, config):
    config = replace(config, max_size=max_size)
    expected = reference.resized_shape(height, width, min_size, config)
    assert accelerated.resized_shape(height, width, min_size, config) == expected
    assert min(expected) >= 1 and max(expected) <= max_size


@either
def test_prepare_and_pad_as_torchvision(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "tv/transform/80_100")
    config = replace(
        TORCHVISION,
        min_size=(int(case["in.min_size"]),),
        max_size=int(case["in.max_size"]),
        pixel_scale=1.0,
    )
    image, labels = case["in.image"].transpose(1, 2, 0), np.ones(len(case["in.boxes"]), dtype=int)
    image_r, target_r = reference.prepare(
        image, reference_structures.Target(case["in.boxes"], labels, case["in.masks"]), config
    )
    image_a, target_a = accelerated.prepare(
        image,
        accelerated_structures.Target(case["in.boxes"], labels, case["in.masks"]),
        config,
        dtype=torch.float64,
    )
    batch = accelerated.collate([(image_a, target_a)], config, [image.shape[:2]])
    for images, boxes in (
        (reference.pad([image_r], config.size_divisor), target_r.boxes),
        (batch.images, batch.boxes[0]),
    ):
        assert_close(images, case["out.tensor"], GOLDEN_OPERATOR, "image")
        assert_close(boxes, case["out.boxes"], GOLDEN_OPERATOR, "boxes")
    assert batch.sizes.tolist() == [case["out.size"].tolist()]
    assert_equal(target_r.masks, case["out.masks"])
    assert_equal(unpacked(target_a, image_a.shape[2]), case["out.masks"])


@either
def test_pillow_filter_as_detectron2(which, golden, shared_golden):
    case = read(which, golden, shared_golden, "d2/pil_resize")
    height, width = int(case["in.oh"]), int(case["in.ow"])
    assert_equal(
        reference.pillow(reference.pillow(case["in.img_u8"], width, 1), height, 0), case["out.img"]
    )
    resized = accelerated.resize(
        torch.from_numpy(case["in.img_u8"]).permute(2, 0, 1), (height, width), DETECTRON2
    )
    assert_equal(resized.permute(1, 2, 0), case["out.img"])


def test_pad_as_detectron2(shared_golden):
    case = read("complete", None, shared_golden, "d2/batch")
    images = [case["in.images.0"], case["in.images.1"]]
    assert_equal(reference.pad(images, int(case["in.div"])), case["out.t"])
    batch = accelerated.collate(
        [(torch.from_numpy(x), None) for x in images], DETECTRON2, [x.shape[1:] for x in images]
    )
    assert_equal(batch.images, case["out.t"])
    assert_equal(batch.sizes, case["out.sizes"])


@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_pillow_filter_is_pillows_bit_for_bit(height, width, new_height, new_width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wide = reference.pillow(image, new_width, 1)
    assert_equal(
        wide, Image.fromarray(image).resize((new_width, height), Image.Resampling.BILINEAR)
    )
    assert_equal(
        reference.pillow(wide, new_height, 0),
        Image.fromarray(wide).resize((new_width, new_height), Image.Resampling.BILINEAR),
    )
    resized = accelerated.resize(
        torch.from_numpy(image).permute(2, 0, 1), (new_height, new_width), DETECTRON2
    )
    assert_equal(resized.permute(1, 2, 0), reference.pillow(wide, new_height, 0))


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_nearest_rows_are_torchs_and_pillows(old, new):
    column = np.arange(old, dtype=np.float32)
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(column)[None, None], size=new, mode="nearest"
    )
    assert_equal(reference.nearest_indices(old, new, TORCHVISION), by_torch[0, 0])
    by_pillow = Image.fromarray(column[:, None]).resize((1, new), Image.Resampling.NEAREST)
    assert_equal(reference.nearest_indices(old, new, DETECTRON2), np.asarray(by_pillow)[:, 0])


@pytest.mark.parametrize(
    "config",
    [TORCHVISION, DETECTRON2, preset("tiny").transform],
    ids=["torchvision", "detectron2", "tiny"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("min_size", [29, 37, 61])
def test_prepare_twins(rng, config, dtype, min_size):
    image, target = example(rng, dtype=dtype)
    config = replace(config, max_size=70)
    image_r, target_r = reference.prepare(image, target, config, min_size)
    image_a, target_a = accelerated.prepare(image, target, config, min_size, dtype=torch.float64)
    assert_close(image_a, image_r, 1e-12, "image")
    assert_close(target_a.boxes, target_r.boxes, 1e-14, "boxes")
    assert_equal(unpacked(target_a, image_r.shape[2]), target_r.masks)
    image_32, target_32 = accelerated.prepare(torch.from_numpy(image), target, config, min_size)
    assert image_32.dtype == target_32.boxes.dtype == torch.float32
    assert_close(image_32, image_r, 1e-4, "image in float32")


def test_min_size_is_chosen_by_the_caller_or_the_last_or_none(rng):
    image, _ = example(rng)
    for twin in (reference, accelerated):
        config = replace(DETECTRON2, min_size=(20, 30))
        assert twin.prepare(image, None, config, 20)[0].shape == (3, 20, 27)
        assert twin.prepare(image, None, config)[0].shape == (3, 30, 41)
        kept, _ = twin.prepare(image, None, replace(config, min_size=()))
        assert_close(kept, (image[:, :, ::-1] - np.array(config.mean)).transpose(2, 0, 1), 1e-6)


def test_collate_pads_objects_and_masks(rng):
    config = Transform(min_size=())
    shapes, counts = [(37, 50), (20, 61), (33, 40)], [3, 0, 1]
    examples = [example(rng, *shape, count) for shape, count in zip(shapes, counts, strict=True)]
    prepared = [accelerated.prepare(image, target, config) for image, target in examples]
    batch = accelerated.collate(
        prepared, config, shapes, image_ids=[7, 8, 9], max_objects=5, pad_to=(64, 72)
    ).to("cpu")
    assert batch.images.shape == (3, 3, 64, 72) and batch.masks.shape == (3, 5, 64, 9)
    assert (
        batch.sizes.tolist()
        == [list(shape) for shape in shapes]
        == [list(shape) for shape in batch.original_sizes]
    )
    assert batch.valid.sum(1).tolist() == counts and batch.image_ids == [7, 8, 9]
    masks = np.unpackbits(batch.masks.numpy(), axis=-1)
    for i, ((_, target), (height, width)) in enumerate(zip(examples, shapes, strict=True)):
        assert_equal(masks[i, : counts[i], :height, :width], target.masks)
        assert_equal(batch.labels[i, : counts[i]], target.labels)
        assert masks[i].sum() == target.masks.sum() and not batch.boxes[i, counts[i] :].any()
        assert not batch.images[i, :, height:].any() and not batch.images[i, :, :, width:].any()

    without = accelerated.collate([(image, None) for image, _ in prepared], config, shapes)
    assert (
        without.boxes.shape == (3, 1, 4)
        and not without.valid.any()
        and without.images.shape == (3, 3, 64, 64)
    )
    with pytest.raises(ValueError, match="max_objects"):
        accelerated.collate(prepared, config, shapes, max_objects=2)
    with pytest.raises(ValueError, match="pad_to"):
        accelerated.collate(prepared, config, shapes, pad_to=(32, 64))


CONVENTIONS = [TORCHVISION, DETECTRON2, replace(TORCHVISION, channel_order="bgr")]


def both_ways(rng, config, dtype=np.uint8):
    """Return the same images as a RawBatch, and as prepared and collated on the CPU."""
    config, counts = replace(config, min_size=(61,), max_size=90), {(37, 50): 3, (99, 64): 0}
    shapes = list(counts)
    examples = [example(rng, *shape, count, dtype) for shape, count in counts.items()]
    raw = [accelerated.prepare_pixels(*pair, config) for pair in examples]
    whole = [accelerated.prepare(*pair, config) for pair in examples]
    raw = accelerated.collate_pixels(raw, config, shapes, [7, 8])
    return raw, accelerated.collate(whole, config, shapes, [7, 8]), config


@pytest.mark.parametrize("config", CONVENTIONS, ids=["torchvision", "detectron2", "bgr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_the_workers_leave_is_finished_to_the_same_bits(rng, config, dtype):
    raw, expected, config = both_ways(rng, config, dtype)
    assert raw.pixels.numpy().dtype == dtype
    resized = config.interpolation == "pillow" and dtype == np.uint8
    sides = raw.new_shapes if resized else raw.original_sizes
    assert raw.pixel_shapes == sides and len(raw.pixels) == sum(3 * h * w for h, w in sides)
    finished = vars(accelerated.finish(raw, config))
    assert finished.keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert finished[name].dtype == value.dtype and torch.equal(finished[name], value), name
        else:
            assert finished[name] == value, name


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONVENTIONS, ids=["torchvision", "detectron2", "bgr"])
def test_a_gpu_finishes_batches_as_a_cpu_does(rng, config):
    """To the bit but for bilinear resizing, whose products a GPU may fuse."""
    raw, expected, config = both_ways(rng, config)
    images = accelerated.finish(raw.to("cuda"), config).images.cpu()
    if config.interpolation == "pillow":
        assert torch.equal(images, expected.images)
    assert_close(images, expected.images, 1e-6)


@pytest.mark.parametrize("twin", [reference, accelerated])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, t: (image[:, :, 0], t), "expected .H, W, 3."),
        (lambda image, t: (image.transpose(2, 0, 1), t), "channels last"),
        (lambda image, t: (image[:0], t), "expected .H, W, 3."),
        (lambda image, t: (image.astype(np.int32), t), "uint8, or floats"),
        (lambda image, t: (np.where(image > 250, np.nan, image), t), "NaN"),
        (lambda image, t: (image, replace(t, boxes=t.boxes[:2])), "3 labels need"),
        (lambda image, t: (image, replace(t, masks=t.masks[:, :-1])), "3 labels need"),
        (lambda image, t: (image, replace(t, boxes=t.boxes[:, [0, 1, 0, 3]])), "box 0"),
        (lambda image, t: (image, replace(t, boxes=t.boxes * [[1], [np.nan], [1]])), "box 1"),
        (lambda image, t: (image, replace(t, labels=t.labels * 0)), "label 0"),
    ],
)
def test_what_cannot_be_prepared_says_why(rng, twin, change, message):
    image, target = change(*example(rng))
    with pytest.raises(ValueError, match=message):
        twin.prepare(image, target, TORCHVISION)
