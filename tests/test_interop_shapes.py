"""Tensors of the wrong rank, empty or absurd in any format: one line that names a tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import narrow

from accelerated import interop
from accelerated.interop import detectron2, peers, torchvision
from reference.config import to_dict

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


SIDES = st.sampled_from([0, 1, 2, 3, 5, 100_000, 10**9])
# What is done to a shape.
SHAPES = (
    lambda shape, draw: [],
    lambda shape, draw: [0],
    lambda shape, draw: shape[:-1],
    lambda shape, draw: [*shape, 1],
    lambda shape, draw: [*shape, draw(SIDES)],
    lambda shape, draw: shape[::-1],
    lambda shape, draw: [0, *shape[1:]],
    lambda shape, draw: [draw(SIDES), *shape[1:]],
    lambda shape, draw: [*shape[:1], draw(SIDES), *shape[2:]],
    lambda shape, draw: [draw(SIDES)] * len(shape),
    lambda shape, draw: [1] * 60,
)


def of_shape(shape, dtype=torch.float32):
    """A tensor that claims its shape and needs no memory."""
    return torch.zeros((), dtype=dtype).expand(shape)


def almost(name, draw):
    """A name that is almost right."""
    where = draw(st.integers(0, len(name) - 1))
    return name[:where] + draw(st.sampled_from(["", "0", "9" * 20, ".", "x"])) + name[where + 1 :]


def changed(tensors, draw):
    """Change, remove, add or rename a few tensors. Those at the seams of the model more often."""
    tensors = dict(tensors)
    seams = [name for name in tensors if not name.split(".")[-2].startswith(("bn", "norm"))]
    touched = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(seams if draw(st.booleans()) else list(tensors)))
        if name not in tensors:
            continue
        touched.append(name)
        kind = draw(st.sampled_from(["shape"] * 6 + ["dtype", "remove", "rename", "add"]))
        if kind == "shape":
            shape = draw(st.sampled_from(SHAPES))(list(tensors[name].shape), draw)
            tensors[name] = of_shape(shape)
        elif kind == "dtype":
            tensors[name] = tensors[name].to(draw(st.sampled_from(DTYPES)))
        elif kind == "remove":
            del tensors[name]
        else:
            new = almost(name, draw)
            tensors[new] = tensors.pop(name) if kind == "rename" else tensors[name]
            touched.append(new)
    return tensors, touched


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_detector_with_other_tensors(whole, family, data):
    tensors, touched = changed(whole(family), data.draw)
    peer = peers.find(whole(family))
    ours = {peer.our_name(name) or name for name in touched}
    # What is missed may be what another name was taken for.
    names = {*whole(family), *tensors, *ours, "tensors begin with", *to_dict(narrow.config("tiny"))}
    refused(lambda: interop.load(tensors), names)


@pytest.mark.parametrize("role", ["class_logits", "bbox", "conv1", "fc6", "logits", "lateral"])
def test_every_rank_of_what_shows_a_width(whole, role):
    """The tensors from which a configuration is inferred, each with every number of sides."""
    words = {"class_logits": "cls_score", "bbox": "bbox_pred", "lateral": "inner_blocks.0"}
    names = [n for n in whole("torchvision") if words.get(role, role) in n and n.endswith("weight")]
    assert names
    for name in names:
        right = whole("torchvision")[name].shape
        for rank in range(6):
            for side in (0, 1, 7, 10**9):
                if [side] * rank == list(right):
                    continue
                tensors = whole("torchvision") | {name: of_shape([side] * rank)}
                with pytest.raises(ValueError) as error:
                    interop.load(tensors)
                assert "\n" not in str(error.value)
                # A side may change what another tensor would have to be, which is named then.
                assert any(n in str(error.value) for n in whole("torchvision")), str(error.value)


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
@given(data=st.data())
def test_a_classifier_with_other_tensors(name, data):
    whole = {key: of_shape(shape) for key, shape in CLASSIFIERS[name].items()}
    tensors, _ = changed({f"{key}": tensor for key, tensor in whole.items()}, data.draw)
    model = narrow.model(narrow.config("torchvision_r50_fpn"), dtype=torch.float32)
    names = {*whole, *tensors, "expected a ResNet", "tensors begin with"}
    refused(lambda: interop.backbone_config(tensors), names)
    refused(lambda: interop.load_backbone(tensors, model), names)
