"""engine.views: one view is no augmentation, and a mirrored image has mirrored detections."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support import narrow

from accelerated.engine import views
from accelerated.engine.views import View
from reference.config import Config, override

# Each way in which heads read features and lay out their outputs.
MODELS = {
    "tiny": (),
    "tiny without masks": ("mask_head.kind=none",),
    "tiny class-agnostic": ("mask_head.class_agnostic=true",),
    "tiny softmax": ("mask_head.loss=softmax", "mask_head.class_agnostic=true"),
    "tiny background last": ("background=last",),
    "torchvision_r50_fpn": ("transform.min_size=[64]", "transform.max_size=96"),
    "detectron2_r50_c4": ("mask_head.loss=softmax",),
    "paper_vgg16": (),
}


@pytest.fixture(params=MODELS)
def model(request):
    return make(request.param)


@cache
def make(name: str = "tiny"):
    config: Config = narrow.config(name.split()[0])
    return narrow.model(override(config, *MODELS[name]))


@pytest.fixture
def images(rng):
    return narrow.scene(rng, shapes=((64, 80), (72, 48)))[0]


def same(ours: Any, theirs: Any):
    for one, other in zip(ours, theirs, strict=True):
        for name in ("boxes", "scores", "labels", "masks"):
            a, b = getattr(one, name), getattr(other, name)
            assert a is b is None or torch.equal(a, b), name


def test_one_view_is_no_augmentation(model, images):
    plain = model.detect(images)
    assert sum(len(found.labels) for found in plain) > 3
    same(views.detect(model, images, "1"), plain)
    same(views.detect(model, images, (View(), View())), plain)


def test_a_mirrored_image_has_mirrored_detections(model, images):
    text = "flip,1.5" if model is make("tiny") else "flip"
    run, turned = views.detector(model, views.parse(text)), [image[:, ::-1] for image in images]
    batch = model.batch(images)
    found, mirrored = run(images, batch), run(turned, model.batch(turned))
    assert found.valid.sum() > 3 and torch.equal(found.valid, mirrored.valid)
    assert torch.equal(found.labels, mirrored.labels)
    x1, y1, x2, y2 = mirrored.boxes.unbind(-1)
    width = batch.sizes[:, 1, None]
    back = torch.stack([width - x2, y1, width - x1, y2], -1)
    for a, b in (
        (found.boxes, torch.where(found.valid[..., None], back, 0)),
        (found.scores, mirrored.scores),
    ):
        assert (a - b).abs().max() < 1e-9
    if found.mask_probabilities is not None and mirrored.mask_probabilities is not None:
        assert found.mask_probabilities.min() >= 0 and found.mask_probabilities.max() <= 1
        off = found.mask_probabilities - mirrored.mask_probabilities.flip(-1)
        assert off[found.valid].abs().max() < 1e-9


def test_pixels_of_masks_are_mirrored_too(images):
    """Both ways at once; with detectron2's pasting, which has no preferred side."""
    config = override(narrow.config("tiny"), "mask_head.paste=detectron2")
    model, text = narrow.model(config), "flip,flip_vertical"
    turned = [np.ascontiguousarray(image[::-1, ::-1]) for image in images]
    pairs: Any = zip(*(views.detect(model, x, text) for x in (images, turned)), strict=True)
    for (found, other), image in zip(pairs, images, strict=True):
        sides = torch.tensor([*image.shape[1::-1]] * 2)
        assert (found.boxes - (sides - other.boxes[:, [2, 3, 0, 1]])).abs().max() < 1e-9
        assert found.masks.any() and torch.equal(found.masks, other.masks.flip(1, 2))


@pytest.mark.parametrize("name", ["tiny", "tiny without masks", "detectron2_r50_c4"])
def test_all_views_are_merged(name, images):
    """The best of all views is the best of the merged ones; all lie inside, by falling score."""
    model, chosen = make(name), views.parse("flip_vertical,0.5")
    found = views.detect(model, images, chosen, crops=True)
    single = [views.detect(model, images, [view]) for view in chosen]
    for i, (image, merged) in enumerate(zip(images, found, strict=True)):
        height, width = image.shape[:2]
        assert (merged.boxes >= 0).all()
        assert (merged.boxes <= torch.tensor([width, height] * 2) + 1e-4).all()
        assert (merged.scores.diff() <= 0).all()
        assert len(merged.labels) <= model.config.box_head.max_detections
        assert merged.scores[0] == max(one[i].scores[0] for one in single if len(one[i].scores))


def test_a_factor_is_of_the_size_of_the_input(images):
    """A model that keeps the size of images sees them at the same size as one that sets it."""
    kept = make()
    sized = narrow.model(override(kept.config, "transform.min_size=[64]", "transform.max_size=90"))
    for scale in (0.5, 1.5):
        [found], [other] = (views.detect(x, images[:1], [View(scale)]) for x in (kept, sized))
        assert torch.equal(found.labels, other.labels)
        assert (found.boxes - other.boxes).abs().max() < 1e-9
        assert not torch.equal(found.boxes, kept.detect(images[:1])[0].boxes)


def test_masks_are_predicted_once_in_each_view(images):
    model, calls = narrow.model(narrow.config("tiny")), []
    assert model.mask_head is not None
    model.mask_head.register_forward_hook(lambda *_: calls.append(1))
    views.detect(model, images, "flip,0.5")
    assert len(calls) == 4


def test_views_are_not_captured():
    with pytest.raises(ValueError, match="--tta and --compile exclude each other: leave one out"):
        views.detector(make(), views.parse("flip"), compile="inductor")


def test_no_image_and_the_mode_of_the_model(images):
    model = make()
    assert views.detect(model, [], "flip") == []
    model.train()
    [found] = views.detect(model, images[:1], "flip")
    assert model.training and model.rpn.training
    model.eval()
    same([found], views.detect(model, images[:1], "flip"))


def test_views_of_text():
    assert views.parse("1") == views.parse("1.0,1") == (View(),)
    assert views.parse("flip") == (View(), View(1, (1,)))
    assert views.parse(" 0.75, flip") == (View(), View(1, (1,)), View(0.75), View(0.75, (1,)))
    assert views.parse("flip_vertical,flip") == (
        View(),
        View(1, (1,)),
        View(1, (0,)),
        View(1, (1, 0)),
    )
    assert len(views.parse("flip,0.75,1.5,0.75")) == 6


@pytest.mark.parametrize("text", ["", ",", "rotate", "0", "-1", "nan", "inf", "20", "flip,2x"])
def test_other_texts_are_refused_in_a_line(text):
    with pytest.raises(ValueError, match=r"^--tta[^\n]*$"):
        views.parse(text)
