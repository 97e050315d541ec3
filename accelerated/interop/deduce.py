"""What tensors say about their model: widths, depths, groups, counts, and which kind of norm, by our names."""

from dataclasses import replace

from accelerated import shared_head
from accelerated.resnet import BLOCKS


class LackingError(ValueError):
    """A tensor without which there is no detector; `name` is ours."""

    def __init__(self, name):
        super().__init__(f"no tensor {name}")
        self.name = name


def classes(tensors):
    """K, without background."""
    return _shape(tensors, "box_head.class_logits.weight")[0] - 1


def norms(config, tensors):
    """`config` with the kinds of norm that the names show: counted batches, stored statistics, or neither (groups)."""
    counted = "backbone.bn1.num_batches_tracked" in tensors
    stored = any(name.startswith("backbone.") and name.endswith("running_mean") for name in tensors)
    if counted or not stored:
        backbone = replace(config.backbone, norm="batch" if counted else "group", frozen_stages=0)
        config = replace(config, backbone=backbone)

    def norm(layer, expected):
        if f"{layer}_norm.weight" not in tensors:
            return "none"
        if f"{layer}_norm.running_mean" not in tensors:
            return "group"
        return expected if expected in ("batch", "sync_batch") else "batch"

    return replace(
        config,
        fpn=replace(config.fpn, norm=norm("fpn.lateral2", config.fpn.norm)),
        box_head=replace(config.box_head, norm=norm("box_head.conv1", config.box_head.norm)),
        mask_head=replace(config.mask_head, norm=norm("mask_head.conv1", config.mask_head.norm)),
    )


def widths(config, tensors):
    """`config` with every width, depth and count as in `tensors`; ValueError where it has other parts than they, naming them."""
    number = classes(tensors)
    deltas = _shape(tensors, "box_head.box_deltas.weight")[0] // 4
    if deltas == 1 < number:
        raise ValueError(
            "the boxes of all classes share their deltas (class-agnostic box regression); there is no such head here"
        )
    background = "first" if deltas == number + 1 else "last"
    pyramid, fc = "fpn.lateral2.weight" in tensors, "box_head.fc6.weight" in tensors
    vgg = "backbone.conv1_1.weight" in tensors
    for what, found, expected in (
        ("put the background", background, config.background),
        ("have the neck", "fpn" if pyramid else "single", config.neck),
        ("have the backbone", "vgg" if vgg else "resnet", config.backbone.kind),
        (
            "have a box head",
            *(
                "of layers" if layers else "of a mean"
                for layers in (fc, config.box_head.kind != "mean")
            ),
        ),
    ):
        if found != expected:
            raise ValueError(
                f"the tensors {what} {found}, the preset {expected}: choose another preset"
            )
    backbone = (
        {"width": _shape(tensors, "backbone.conv1_1.weight")[0]}
        if vgg
        else _resnet(tensors, config)
    )
    config = replace(config, num_classes=number, backbone=replace(config.backbone, **backbone))
    if pyramid:
        config = replace(
            config, fpn=replace(config.fpn, channels=_shape(tensors, "fpn.lateral2.weight")[0])
        )
    return replace(
        config,
        rpn=replace(config.rpn, conv_depth=_count(tensors, "rpn.conv{1}.weight")),
        box_head=replace(config.box_head, **_box_head(tensors, config)),
        mask_head=replace(config.mask_head, **_mask_head(tensors, config)),
    )


def _resnet(tensors, config):
    bottleneck = "backbone.layer1.0.conv3.weight" in tensors
    blocks = tuple(
        _count(tensors, f"backbone.layer{stage}.{{0}}.conv1.weight") for stage in (1, 2, 3, 4)
    )
    blocks = blocks if blocks[3] else blocks[:3]  # a model on stage 4 alone has no more
    depths = [
        depth
        for depth, counts in BLOCKS.items()
        if counts[: len(blocks)] == blocks and (depth >= 50) == bottleneck
    ]
    if not depths:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        raise ValueError(
            f"stages of {blocks} {kind}: no ResNet of depth {', '.join(map(str, BLOCKS))}"
        )
    found = {"depth": depths[0], "width": _shape(tensors, "backbone.conv1.weight")[0], "groups": 1}
    if bottleneck:
        inner, of_group = _shape(tensors, "backbone.layer1.0.conv2.weight")[:2]
        if inner != of_group:
            found |= {"groups": inner // of_group, "group_width": of_group}
    return found


def _box_head(tensors, config):
    if config.box_head.kind == "mean":
        return {}
    if "box_head.conv1.weight" in tensors:
        channels = _shape(tensors, "box_head.conv1.weight")[0]
        found, before = {"kind": "four_conv_fc", "conv_channels": channels}, channels
    else:
        found, before = {"kind": "two_fc"}, shared_head.shape(config, config.box_head.pooler)[0]
    found["channels"] = _shape(tensors, "box_head.class_logits.weight")[1]
    if config.shared_head == "none":  # else the side shrinks on the way
        area = _shape(tensors, "box_head.fc6.weight")[1] / before
        found["pooler"] = replace(config.box_head.pooler, output_size=round(area**0.5))
    return found


def _mask_head(tensors, config):
    head = config.mask_head
    if not any(name.startswith("mask_head.") for name in tensors):
        return {"kind": "none"}
    masks = _shape(tensors, "mask_head.logits.weight")[0]
    if "mask_head.fc1.weight" in tensors:
        found = {"kind": "mlp", "mlp_channels": _shape(tensors, "mask_head.fc1.weight")[0]}
        masks //= (2 * shared_head.shape(config, head.pooler)[1]) ** 2
    else:
        found = {
            "kind": "fcn",
            "convs": _count(tensors, "mask_head.conv{1}.weight"),
            "channels": _shape(tensors, "mask_head.deconv.weight")[1],
        }
    if config.num_classes > 1:  # else one mask is all the same
        found["class_agnostic"] = masks == 1 + (head.loss == "softmax")
    return found


def _shape(tensors, name):
    if name not in tensors:
        raise LackingError(name)
    return tensors[name].shape


def _count(tensors, pattern):
    """Of the layers i = 0, 1, .. (or i + 1) in a row that have the tensor `pattern`."""
    return next(i for i in range(len(tensors) + 1) if pattern.format(i, i + 1) not in tensors)
