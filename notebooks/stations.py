"""The two rivers of notebook 0: the stations of a detection, and those of a training step.

Like figures.py, this only draws what others computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import figures as draw
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def detection(
    image: np.ndarray,
    record: Any,
    found: Any,
    names: Sequence[str],
    class_scores: np.ndarray,
    followed: tuple[int, int, int],
) -> Figure:
    """Draw the eight stations of one image.

    record        Stages of a detection, of one image
    found         its Detections
    names         of the classes, the background first
    class_scores  [P, K + 1] of the proposals, in the order of `names`
    followed      the detection, the proposal and the anchor of the object that is followed
    """
    figure, axes = draw.figure(2, 4, size=(draw.WIDEST, 6.5))
    one, two, three, four, eight, seven, six, five = axes.flat
    object_, proposal, anchor = followed
    draw.image(one, image, "")
    _name(one, "1. the image", shape(image), "stride 1 pixel", "brightness, 0 to 255")
    _maps(two, [getattr(record, f"P{level}")[0] for level in range(2, 7)])
    _anchors(three, image, record.anchors, anchor)
    _proposals(four, image, record.proposals[0], record.proposal_scores[0], proposal)
    box = found.boxes[object_]
    side = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    _roi_features(five, record.box_features, proposal, side)
    _classes(six, dict(zip(names, class_scores[proposal], strict=True)), shape(class_scores))
    _mask(seven, record.mask_probabilities, object_, side)
    _pasted(eight, image, found, names, object_)
    figure.get_layout_engine().set(rect=(0.01, 0, 0.94, 1), wspace=0.13)
    draw.river(figure, [one, two, three, four, five, six, seven, eight])
    return figure


def training(
    image: np.ndarray,
    target: Any,
    anchors: np.ndarray,
    record: Any,
    losses: Mapping[str, float],
    label: int,
) -> Figure:
    """Draw the answers that a training step on one image compares with, and its losses.

    target   the true objects
    anchors  [T, 4] of all levels
    record   Stages of the step
    label    of the object whose mask target is shown
    """
    figure, axes = draw.figure(1, 5, size=(draw.WIDEST, 2.7))
    truth, asked, rois, mask, loss = axes
    _truth(truth, image, target)
    _sampled_anchors(asked, image, anchors, record.rpn_sampled[0])
    _sampled_rois(rois, image, record.samples[0])
    first = int(np.flatnonzero(record.samples[0].labels == label)[0])
    mask.imshow(record.mask_targets[first], cmap=draw.MAGNITUDE)
    _name(mask, "d. a mask target", shape(record.mask_targets), "0 to 1")
    _losses(loss, losses)
    figure.get_layout_engine().set(wspace=0.12)
    draw.river(figure, axes)
    return figure


def shape(array: np.ndarray) -> str:
    """Return the shape of an array as text."""
    return f"[{', '.join(map(str, np.shape(array)))}]"


def _name(axes: Axes, title, *lines):
    """Write the name over a station, and its shape, stride and unit under it."""
    axes.set(xlabel="\n".join(lines), ylabel="", xticks=[], yticks=[], box_aspect=1)
    axes.set_title(title, fontweight="bold")


def _label(axes, x, y, text, **style):
    """Write a small text on white at (x, y)."""
    paper = {"facecolor": "white", "linewidth": 0, "pad": 1}
    axes.text(x, y, text, fontsize=draw.SMALLEST_TEXT, bbox=paper, **style)


def _faint(image):
    return image / 255 * 0.4 + 0.6


def _maps(axes, levels):
    draw.sheet(axes, [np.linalg.norm(level, axis=0) for level in levels[:4]], 2)
    for i in range(4):
        _label(axes, 0.03 + 1.08 * (i % 2), 0.03 + 1.08 * (i // 2), f"P{i + 2}", va="top")
    span = f"{shape(levels[0])} to {shape(levels[-1])}"
    _name(axes, "2. maps P2 to P6", span, "stride 4 to 64 pixels", "features, no unit")


def _anchors(axes, image, levels, anchor):
    """Draw the anchor that is followed, and the centres of the anchors of its level."""
    every = np.concatenate(levels)
    level = np.repeat(range(2, 7), [len(part) for part in levels])[anchor]
    centres = np.arange(2 ** (level - 1), image.shape[1], 2**level) - 0.5
    draw.image(axes, _faint(image), "")
    draw.samples(axes, centres, centres)
    draw.box(axes, every[anchor], draw.USED)
    title = f"3. anchors (dots: P{level})"
    _name(axes, title, shape(every), "stride 4 to 64 pixels", "corners, pixels")


def _proposals(axes, image, boxes, scores, proposal):
    draw.image(axes, _faint(image), "")
    draw.boxes(axes, boxes, scores, draw.QUIET)
    draw.box(axes, boxes[proposal], draw.USED)
    _name(axes, "4. proposals", shape(boxes), "no stride, anywhere", "corners, pixels")


def _roi_features(axes, features, proposal, side):
    draw.sheet(axes, features[proposal], 6)
    step = f"stride {side / features.shape[-1]:.1f} pixels in this box"
    _name(axes, "5. RoI features", shape(features), step, "features, no unit")


def _classes(axes, scores, shape_of_all):
    best = max(scores, key=scores.__getitem__)
    draw.bars(axes, scores, "", unit="", marked=[best], form="{:.2f}")
    for i, name in enumerate(scores):
        _label(axes, 0.02, i - 0.43, name)
    axes.set_ylim(len(scores) - 0.5, -0.8)
    _name(axes, "6. classes", shape_of_all, "one row per proposal", "probability, no unit")


def _mask(axes, masks, object_, side):
    height, width = masks.shape[1:]
    grid = {"vmin": 0, "vmax": 1, "extent": (0, width, height, 0)}
    axes.imshow(masks[object_], cmap=draw.MAGNITUDE, **grid)
    draw.outline(axes, masks[object_] >= 0.5)
    step = f"stride {side / width:.1f} pixels in this box"
    _name(axes, "7. the mask", shape(masks), step, "probability, no unit")


def _pasted(axes, image, found, names, object_):
    draw.image(axes, image, "")
    for i in np.flatnonzero(found.scores > 0.5)[::-1]:
        draw.outline(axes, found.masks[i], draw.USED if i == object_ else draw.QUIET)
        text = f"{names[found.labels[i]]} {found.scores[i]:.2f}"
        _label(axes, found.boxes[i, 0], found.boxes[i, 3] + 2, text, va="top")
    _name(axes, "8. pasted masks", shape(found.masks), "stride 1 pixel", "inside or outside")


def _truth(axes, image, target):
    draw.image(axes, image, "")
    draw.boxes(axes, target.boxes, np.ones(len(target.boxes)), draw.ASKED)
    for mask in target.masks:
        draw.outline(axes, mask, draw.ASKED)
    _name(axes, "a. the truth", f"{len(target.labels)} masks", "and their boxes")


def _sampled_anchors(axes, image, anchors, sampled):
    """Draw the centres of the anchors that are asked: squares on objects, dots on background."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    draw.image(axes, _faint(image), "")
    axes.plot(*centres[sampled == 0].T, ".", color=draw.QUIET, markersize=4)
    axes.plot(*centres[sampled == 1].T, "s", color=draw.USED, markersize=4)
    _name(axes, "b. anchors", *_counts(sum(sampled == 1), sum(sampled == 0)))


def _sampled_rois(axes, image, samples):
    objects = samples.labels > 0
    draw.image(axes, _faint(image), "")
    draw.boxes(axes, samples.rois[~objects], np.full(sum(~objects), 0.8), draw.QUIET)
    draw.boxes(axes, samples.rois[objects], np.ones(sum(objects)), draw.USED)
    _name(axes, "c. RoIs", *_counts(sum(objects), sum(~objects)))


def _counts(objects, background):
    return f"{objects} objects,", f"{background} background"


def _losses(axes, losses):
    bars = axes.barh(range(len(losses)), list(losses.values()), color=draw.SAMPLE)
    texts = [f"{name.replace('_', ' ')} {loss:.2g}" for name, loss in losses.items()]
    axes.bar_label(bars, texts, padding=3, fontsize=9)
    axes.set(xlim=(0, 2.3 * max(losses.values())), ylim=(len(losses) - 0.5, -0.5))
    _name(axes, "e. five losses", f"their sum is {sum(losses.values()):.2f},", "no unit")
