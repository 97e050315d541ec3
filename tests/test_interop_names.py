"""Tables of tensor names: what is exported is imported again, for every row and every layout."""

import pytest
import torch
from support import narrow

from accelerated.interop import backbones, detectron2, maskrcnn_benchmark, torchvision
from accelerated.interop.templates import Names, Template
from accelerated.mask_rcnn import MaskRCNN
from reference.config import override

TABLES = {
    "torchvision": torchvision.NAMES,
    "torchvision, four convolutions": torchvision.FOUR_CONV_FC,
    "torchvision, old": torchvision.OLD_NAMES,
    "detectron2": detectron2.NAMES,
    "detectron2, backbone": detectron2.BACKBONE,
    "detectron2, RPN": detectron2.RPN_CONV,
    "detectron2, deep RPN": detectron2.RPN_CONVS,
    "maskrcnn-benchmark": maskrcnn_benchmark.NAMES,
    **{f"backbone {number}": format.names for number, format in enumerate(backbones.FORMATS)},
}
TEXTS = {"part": "running_mean", "rest": "3.0.weight"}


def test_fields():
    names = Names(("fpn.lateral{l}.{part}", "blocks.{l-2}.0.{part}"))
    assert names.theirs("fpn.lateral12.weight") == "blocks.10.0.weight"
    assert names.ours("blocks.10.0.weight") == "fpn.lateral12.weight"
    for name in ("blocks.10.0.weight.more", "blocks.x.0.weight", "xblocks.1.0.weight", ""):
        assert names.ours(name) is None
    assert Template("a.{i+1}.{rest}").read("a.3.b.c") == {"i": "2", "rest": "b.c"}
    first = Names(("a.{part}", "c.{part}"), ("a.weight", "d.weight"))
    assert first.theirs("a.weight") == "c.weight" and first.ours("d.weight") == "a.weight"


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_in_both_directions(table):
    for ours, theirs in table.rows:
        assert set(ours.fields) == set(theirs.fields)
        for number in (5, 6, 17):
            values = {field: TEXTS.get(field, str(number)) for field in ours.fields}
            assert table.ours(theirs.write(values)) == ours.write(values)
            assert ours.read(ours.write(values)) == theirs.read(theirs.write(values)) == values


@pytest.mark.parametrize("change", ["rpn.conv_depth=1", "rpn.conv_depth=3", "fpn.norm=group"])
@pytest.mark.parametrize("name", narrow.PRESETS)
@pytest.mark.parametrize("peer", [torchvision, detectron2, maskrcnn_benchmark])
def test_every_layout_in_both_directions(peer, name, change):
    """A name that a format has is that of one tensor, and is translated back to it."""
    config = override(narrow.config(name), change)
    with torch.device("meta"):
        names = MaskRCNN(config).state_dict()
    exported = {ours: peer.their_name(ours, config) for ours in names}
    known = {ours: theirs for ours, theirs in exported.items() if theirs is not None}
    assert len(set(known.values())) == len(known) > 20
    assert {ours: peer.our_name(theirs) for ours, theirs in known.items()} == {n: n for n in known}
