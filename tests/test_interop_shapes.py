"""Tensors of the wrong rank, empty or absurd in any format: one line that names a tensor."""

import math
from random import Random

import pytest
import torch
from support import narrow

from accelerated import interop
from accelerated.interop import detectron2, peers, torchvision

FAMILIES = {
    "torchvision": ("torchvision_r50_fpn", torchvision),
    "torchvision v2": ("torchvision_r50_fpn_v2", torchvision),
    "detectron2": ("detectron2_r50_fpn", detectron2),
    "detectron2 C4": ("detectron2_r50_c4", detectron2),
    "detectron2 DC5": ("detectron2_r50_dc5", detectron2),
    "detectron2 ResNeXt": ("detectron2_x101_fpn", detectron2),
}
DTYPES = [torch.int64, torch.bool, torch.complex64, torch.uint8]


def state_dict(preset, peer):
    model = narrow.model(narrow.config(preset), dtype=torch.float32)
    return peer.state_dict(model)


@pytest.fixture(scope="module")
def whole():
    """{family: tensors by their names}, made once each."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = state_dict(*FAMILIES[family])
        return made[family]

    return get


def refused(read, names):
    """Check that reading fails with one line that names a tensor, or succeeds."""
    try:
        read()
    except ValueError as error:
        text = str(error)
        assert "\n" not in text, text
        assert any(name in text for name in names), text


SIDES = (0, 1, 2, 3, 5, 100_000, 10**9)
# What is done to a shape.
SHAPES = (
    lambda shape, random: [],
    lambda shape, random: [0],
    lambda shape, random: shape[:-1],
    lambda shape, random: [*shape, 1],
    lambda shape, random: [*shape, random.choice(SIDES)],
    lambda shape, random: shape[::-1],
    lambda shape, random: [0, *shape[1:]],
    lambda shape, random: [random.choice(SIDES), *shape[1:]],
    lambda shape, random: [*shape[:1], random.choice(SIDES), *shape[2:]],
    lambda shape, random: [random.choice(SIDES)] * len(shape),
    lambda shape, random: [1] * 60,
)


def of_shape(shape, dtype=torch.float32):
    """A tensor that claims its shape and needs no memory; PyTorch has none of 2^63 elements."""
    if math.prod(shape) >> 60:
        shape = [min(side, 1000) for side in shape]
    return torch.zeros((), dtype=dtype).expand(shape)


def almost(name, random):
    """A name that is almost right."""
    where = random.randrange(len(name))
    return name[:where] + random.choice(["", "0", "9" * 20, ".", "x"]) + name[where + 1 :]


def changed(tensors, random):
    """Change, remove, add or rename a few tensors; those that show a width more often."""
    tensors = dict(tensors)
    weights = [name for name in tensors if tensors[name].ndim > 1]
    for _ in range(random.randint(1, 3)):
        name = random.choice(weights if random.random() < 0.7 else list(tensors))
        kind = random.choice(["shape"] * 6 + ["dtype", "remove", "rename", "add"])
        if name not in tensors:
            continue
        if kind == "shape":
            shape = random.choice(SHAPES)(list(tensors[name].shape), random)
            tensors[name] = of_shape(shape)
        elif kind == "dtype":
            tensors[name] = tensors[name].to(random.choice(DTYPES))
        elif kind == "remove":
            del tensors[name]
        else:
            moved = tensors.pop(name) if kind == "rename" else tensors[name]
            tensors[almost(name, random)] = moved
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_a_detector_with_other_tensors(whole, family):
    peer = peers.find(whole(family))
    for seed in range(6):
        tensors = changed(whole(family), Random(seed))
        # A part that is missing, or there without need, has the name of its setting.
        names = {
            *whole(family),
            *tensors,
            "tensors begin with",
            "the tensors have",
            "backbone with",
        }
        names |= {peer.our_name(name) or name for name in tensors}
        refused(lambda tensors=tensors: interop.load(tensors), names)


# The tensors from which a configuration is inferred.
SEAMS = (
    "backbone.body.conv1.weight",
    "backbone.body.layer1.0.conv2.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
    "roi_heads.box_head.fc6.weight",
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.mask_predictor.conv5_mask.weight",
    "roi_heads.mask_predictor.mask_fcn_logits.weight",
)


def test_every_rank_of_what_shows_a_width(whole):
    for name in SEAMS:
        right = whole("torchvision")[name].shape
        for rank in range(6):
            for side in (0, 7):
                if [side] * rank == list(right):
                    continue
                tensors = whole("torchvision") | {name: of_shape([side] * rank)}
                with pytest.raises(ValueError) as error:
                    interop.load(tensors)
                assert "\n" not in str(error.value)
                # A side may change what another tensor would have to be, which is named then.
                text = str(error.value)
                assert any(n in text for n in (*whole("torchvision"), "the tensors have")), text


@pytest.mark.parametrize("name", ["pixel_mean", "pixel_std"])
@pytest.mark.parametrize("shape", [[], [0], [4], [3, 3], [10**9]])
def test_constants_of_detectron2(whole, name, shape):
    with pytest.raises(ValueError, match=f"{name}: expected 3 finite numbers"):
        interop.load(whole("detectron2") | {name: of_shape(shape)})
    with pytest.raises(ValueError, match=f"{name}: expected 3 finite numbers"):
        interop.load(whole("detectron2") | {name: torch.tensor([1.0, 2.0, float("nan")])})
    if name == "pixel_std":
        with pytest.raises(ValueError, match=r"transform\.std: expected 1e-09 to "):
            interop.load(whole("detectron2") | {name: torch.zeros(3)})


def test_numbers_of_another_type(whole):
    tensors = whole("torchvision")
    name = "roi_heads.box_predictor.cls_score.weight"
    for dtype in DTYPES:
        with pytest.raises(
            ValueError, match=rf"no floating-point numbers: {name} \({str(dtype)[6:]}"
        ):
            interop.load(tensors | {name: tensors[name].to(dtype)})


CLASSIFIERS = {
    "resnet": {
        "conv1.weight": [64, 3, 7, 7],
        "bn1.weight": [64],
        **{
            f"layer{s}.{b}.conv{c}.weight": [64 * 2 ** (s - 1), 64, 3, 3]
            for s, blocks in enumerate((2, 2, 2, 2), start=1)
            for b in range(blocks)
            for c in (1, 2)
        },
    },
    "vgg": {f"features.{k}.weight": [64, 64, 3, 3] for k in (0, 2, 5, 7, 10, 12, 14)},
    "caffe2": {
        "conv1_w": [64, 3, 7, 7],
        "res_conv1_bn_s": [64],
        "res2_0_branch2a_w": [64, 64, 1, 1],
        "res2_0_branch2a_bn_s": [64],
    },
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_with_other_tensors(name):
    whole = {key: of_shape(shape) for key, shape in CLASSIFIERS[name].items()}
    model = narrow.model(narrow.config("torchvision_r50_fpn"), dtype=torch.float32)
    for seed in range(40):
        tensors = changed(whole, Random(seed))
        names = {*whole, *tensors, "backbone with", "tensors begin with"}
        refused(lambda tensors=tensors: interop.backbone_config(tensors), names)
        refused(lambda tensors=tensors: interop.load_backbone(tensors, model), names)
