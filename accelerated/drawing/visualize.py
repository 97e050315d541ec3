"""Pictures: detections drawn on an image, a sheet of images, the loss curve. NumPy, Pillow and Matplotlib; nothing is computed here."""

import colorsys
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.45  # of a mask


def color(index: int) -> tuple[int, int, int]:
    """RGB of the index-th object: hues a golden ratio apart, so that neighbours differ; brightness alternates."""
    hue = (0.58 + index * 0.618033988749895) % 1
    rgb = colorsys.hsv_to_rgb(hue, 0.5 + 0.3 * (index % 2), 1.0 - 0.15 * (index // 2 % 2))
    return tuple(round(255 * c) for c in rgb)


def draw(image, detections, names, *, threshold=0.5, scale=1):
    """The image with translucent masks, outlines, boxes, and a name and score for each object.

    image       [H, W, 3]  RGB, 0..255
    detections  Detections or Target (boxes [D, 4], labels [D]; masks [D, H, W] or None, scores [D] if it has any), arrays or tensors on
                any device
    names       [K]        of the classes 1..K
    threshold              objects that score less are left out (0..1)
    scale                  whole number; the picture is enlarged by this, so that small images get legible text
    Returns     [H * scale, W * scale, 3] uint8.

    Large objects are drawn first, so that they hide no small one. Crowds stay visible: over a narrow box stands the bare score or nothing,
    of two texts that would overlap the better score's is written, and where there is one class its name is not.
    """
    boxes, labels = (_numpy(getattr(detections, key)) for key in ("boxes", "labels"))
    masks = () if detections.masks is None else _numpy(detections.masks)
    scores = getattr(detections, "scores", None)
    scores = np.ones(len(boxes)) if scores is None else _numpy(scores)
    has_scores = getattr(detections, "scores", None) is not None

    canvas = np.clip(_numpy(image), 0, 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    boxes = boxes * scale
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    shown = np.flatnonzero(scores >= threshold)
    by_area = shown[np.argsort(-area[shown], kind="stable")]
    for index in by_area if len(masks) else ():
        _blend(canvas, masks[index].astype(bool), color(index), scale)

    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for index in by_area:
        x1, y1, x2, y2 = (float(v) for v in boxes[index])
        if x2 >= x1 and y2 >= y1:
            pen.rectangle((x1, y1, x2, y2), outline=color(index))
    taken = np.zeros((0, 4))
    spacing = np.sqrt(
        canvas.shape[0] * canvas.shape[1] / max(1, len(shown))
    )  # between objects, on average
    font = ImageFont.load_default(size=11 if max(canvas.shape[:2]) < 1000 else 14)
    for index in shown[np.argsort(-scores[shown], kind="stable")]:
        score = f"{scores[index]:.2f}" if has_scores else ""
        room = max(spacing, 1.5 * (boxes[index, 2] - boxes[index, 0]))
        name = _name(names, int(labels[index])) if len(names) != 1 else ""
        texts = (f"{name} {score}".strip(), score.lstrip("0"))
        text = next((text for text in texts if pen.textlength(text, font=font) <= room), "")
        place = _place(pen.textbbox((0, 0), text, font=font), boxes[index], canvas.shape, taken)
        if text and place is not None:
            taken = np.vstack([taken, place])
            pen.rectangle(tuple(place), fill=color(index))
            luminance = np.dot(color(index), (0.299, 0.587, 0.114))
            pen.text(
                (place[0] + 1, place[1]),
                text,
                fill="black" if luminance > 110 else "white",
                font=font,
            )
    return np.asarray(picture)


def sheet(images, columns=4, *, gap=6):
    """Images side by side on white, row by row.

    images  list of [h, w, 3] uint8; each is shrunk or centred into a cell of the median size, never enlarged
    Returns [H, W, 3] uint8. ValueError without images.
    """
    if not len(images):
        raise ValueError("a sheet needs at least one image")
    height, width = (int(np.median([image.shape[axis] for image in images])) for axis in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        shrink = min(1.0, height / image.shape[0], width / image.shape[1])
        if shrink < 1:
            size = max(1, int(image.shape[1] * shrink)), max(1, int(image.shape[0] * shrink))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        h, w = image.shape[:2]
        y = gap + (i // columns) * (height + gap) + (height - h) // 2
        x = gap + (i % columns) * (width + gap) + (width - w) // 2
        page[y : y + h, x : x + w] = image
    return page


def sample(dataset, count, seed=0):
    """A sheet of `count` images of a data set, drawn at random, with their objects."""
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
    items = [dataset[int(index)] for index in chosen]
    return sheet([draw(item.image, item.target, dataset.class_names) for item in items])


def save(image, path):
    """[H, W, 3] uint8 to a picture file; its folder is made. ValueError for an ending that names no picture format."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def loss_curve(log, path):
    """The training log (JSON lines, each with "iteration", "loss" and the single losses) drawn over the iterations into a PNG.

    Dots are single steps, lines their running mean. ValueError when the log has no training step.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in Path(log).read_text().splitlines() if line.strip()]
    rows = [row for row in lines if "loss" in row and "iteration" in row]
    if not rows:
        raise ValueError(f"{log}: no training step in the log")
    names = [
        "loss",
        *(
            name
            for name in ("rpn_objectness", "rpn_box", "class", "box", "mask")
            if name in rows[0]
        ),
    ]
    iterations = np.array([row["iteration"] for row in rows])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in names:
        values = np.array([row[name] for row in rows], dtype=float)
        window = max(1, len(values) // 40)
        sums = np.cumsum(np.concatenate([[0.0], values]))
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(ends - window, 0)
        mean = (sums[ends] - sums[starts]) / (ends - starts)
        (line,) = axes.plot(iterations, mean, label=name, linewidth=2 if name == "loss" else 1)
        axes.plot(iterations, values, ".", markersize=2, alpha=0.25, color=line.get_color())
    axes.set(xlabel="iteration", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def comparisons(groups, path, *, unit):
    """A panel for each group of rows: the values of a row as dots, their mean and standard deviation, a published number as a diamond.

    groups  {title: [(name, list of values, published number), ..]}; a row may have no value yet
    path    of the PNG
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(groups))
    figure, panels = plt.subplots(
        -(-len(groups) // columns),
        columns,
        figsize=(4.2 * columns, 2.1 * -(-len(groups) // columns)),
        squeeze=False,
    )
    figure.set_layout_engine("constrained")
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (title, rows) in zip(panels.flat, groups.items(), strict=False):
        for y, (_, values, published) in enumerate(rows):
            axes.plot(published, y, "D", color="none", markeredgecolor="gray", label="paper, COCO")
            if values:
                mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0
                axes.errorbar(
                    mean,
                    y,
                    xerr=deviation,
                    fmt="|",
                    color="C0",
                    markersize=14,
                    capsize=3,
                    label="mean, standard deviation",
                )
                axes.plot(values, [y] * len(values), ".", color="C1", label="seeds")
        axes.set(
            title=title,
            yticks=range(len(rows)),
            yticklabels=[name for name, _, _ in rows],
            ylim=(len(rows) - 0.5, -0.5),
            xlabel=unit,
        )
        axes.grid(alpha=0.3, axis="x")
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def loss_comparison(pairs, path):
    """Both loss curves of `verify.training.train` into a PNG, one upon the other, and under them how far apart they are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    steps = [pair.iteration for pair in pairs]
    figure, (above, below) = plt.subplots(
        2, figsize=(7, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot(
        steps,
        [sum(pair.numpy.values()) for pair in pairs],
        color="tab:orange",
        alpha=0.6,
        linewidth=6,
        label="NumPy",
    )
    above.plot(
        steps,
        [sum(pair.torch.values()) for pair in pairs],
        color="black",
        linewidth=1,
        label="PyTorch",
    )
    above.set(ylabel="loss")
    above.legend()
    below.plot(
        steps, [max(pair.difference, 1e-17) for pair in pairs], color="tab:red"
    )  # 0 has no logarithm
    below.set(
        xlabel="step",
        ylabel="largest difference\nof a loss, relative",
        yscale="log",
        ylim=(1e-17, None),
    )
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _numpy(x):
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def _name(names, label):
    return names[label - 1] if 1 <= label <= len(names) else str(label)


def _blend(canvas, mask, rgb, scale):
    """Fill the mask and darken its rim, inside the mask's own bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = mask[window].repeat(scale, 0).repeat(scale, 1)
    view = canvas[
        window[0].start * scale : window[0].stop * scale,
        window[1].start * scale : window[1].stop * scale,
    ]
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    view[inside] = np.round((1 - OPACITY) * view[inside] + OPACITY * np.array(rgb)).astype(np.uint8)
    view[inside & ~core] = rgb


def _place(text_box, box, shape, taken):
    """Where a text goes, [x1, y1, x2, y2]: above its box, else inside at the top, else below; None where each covers another text."""
    width, height = text_box[2] + 2, text_box[3] + 2
    x = np.clip(box[0], 0, max(0, shape[1] - width))
    for y in (box[1] - height, box[1], box[3]):
        place = np.array([x, y, x + width, y + height])
        if 0 <= y <= shape[0] - height and not _overlaps(place, taken):
            return place
    return None


def _overlaps(place, taken):
    return ((place[:2] < taken[:, 2:]) & (taken[:, :2] < place[2:])).all(1).any()
