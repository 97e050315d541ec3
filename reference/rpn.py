"""Region proposal network [Faster R-CNN §3.1]: its head, what it is trained towards, and the proposals it makes.

Legend: N images, A anchors per cell, T anchors of all levels, G ground truths, P proposals of an image.
Flattened order: level, y, x, anchor.
"""

import numpy as np

from reference import box_coder, boxes, matcher, neck, nms
from reference.activations import relu, sigmoid
from reference.conv import conv2d


def head(parameters, features, config):
    """Objectness and deltas of every anchor, by the same convolutions at every level.

    features {level: [N, C, h, w]}
    Returns two lists over the levels: logits [N, A, h, w], deltas [N, 4A, h, w] (channel 4 a + coordinate).
    """
    logits, deltas = [], []
    for x in features.values():
        for i in range(1, config.rpn.conv_depth + 1):
            x = relu(
                conv2d(
                    x, parameters[f"rpn.conv{i}.weight"], parameters[f"rpn.conv{i}.bias"], padding=1
                )
            )
        logits.append(conv2d(x, parameters["rpn.logits.weight"], parameters["rpn.logits.bias"]))
        deltas.append(conv2d(x, parameters["rpn.deltas.weight"], parameters["rpn.deltas.bias"]))
    return logits, deltas


def flatten(logits, deltas):
    """The maps of all levels in the order of the anchors: logits [N, T], deltas [N, T, 4]."""
    images = len(logits[0])
    flat_logits = [x.transpose(0, 2, 3, 1).reshape(images, -1) for x in logits]
    flat_deltas = [x.transpose(0, 2, 3, 1).reshape(images, -1, 4) for x in deltas]
    return np.concatenate(flat_logits, axis=1), np.concatenate(flat_deltas, axis=1)


def proposals(logits, deltas, anchors, sizes, config, *, training):
    """The best-scored boxes of every image after suppression within each level (SPEC §7). No gradient runs through them.

    logits [N, T], deltas [N, T, 4]: arrays; anchors: list over the levels of [T_l, 4]; sizes: (h, w) of every unpadded image
    Returns one (boxes [P, 4], scores [P]) per image, by falling score; P <= post_nms_top_n. See `select`.
    """
    level = np.repeat(np.arange(len(anchors)), [len(a) for a in anchors])
    all_boxes = box_coder.decode(deltas, np.concatenate(anchors), config.rpn.box_weights)
    return [
        select(b, s, level, size, config.rpn, training=training)
        for b, s, size in zip(all_boxes, logits, sizes, strict=True)
    ]


def select(boxes_, logits, level, size, config, *, training):
    """The proposals among one image's decoded boxes [T, 4] with logits [T] on levels [T]; config: config.RPN

    Per level the pre_nms_top_n highest logits; clipped to `size` (h, w); short boxes dropped; suppressed per level; of all the
    post_nms_top_n best.
    Scores are probabilities or logits, as `nms_score` says. Ties in score: lower index first.
    """
    pre = config.pre_nms_top_n_train if training else config.pre_nms_top_n_test
    post = config.post_nms_top_n_train if training else config.post_nms_top_n_test
    best = []
    for number in np.unique(level):
        rows = np.flatnonzero(level == number)
        best.append(rows[nms.top_k(logits[rows], pre)])
    best = np.concatenate(best)
    boxes_, logits, level = boxes.clip(boxes_[best], *size), logits[best], level[best]
    valid = boxes.is_valid(boxes_, config.min_size, config.min_size_inclusive)
    boxes_, logits, level = boxes_[valid], logits[valid], level[valid]
    scores = sigmoid(logits) if config.nms_score == "probability" else logits
    keep = nms.batched_nms(boxes_, scores, level, config.nms_iou)[:post]
    return boxes_[keep], scores[keep]


def targets(anchors, gt_boxes, config):
    """What each anchor of one image should say: labels [T] (1 object, 0 background, -1 ignored), deltas [T, 4] (0 unless the label is 1).

    anchors [T, 4], gt_boxes [G, 4] (G may be 0); config: config.RPN
    """
    iou = boxes.iou(gt_boxes, anchors)
    labels, matched = matcher.match(
        iou,
        config.foreground_iou,
        config.background_iou,
        config.low_quality_matches,
        config.zero_iou_matches,
    )
    positive, deltas = labels == 1, np.zeros_like(anchors)
    deltas[positive] = box_coder.encode(
        gt_boxes[matched[positive]], anchors[positive], config.box_weights
    )
    return labels, deltas


def parameter_shapes(config):
    """{parameter: shape}."""
    channels, anchors = (
        neck.of(config).channels(config),
        len(config.anchors.sizes[0]) * len(config.anchors.ratios),
    )
    shapes = {
        f"rpn.conv{i}": (channels, channels, 3, 3) for i in range(1, config.rpn.conv_depth + 1)
    }
    shapes |= {"rpn.logits": (anchors, channels, 1, 1), "rpn.deltas": (4 * anchors, channels, 1, 1)}
    return {
        f"{name}.{part}": size
        for name, shape in shapes.items()
        for part, size in (("weight", shape), ("bias", shape[:1]))
    }
