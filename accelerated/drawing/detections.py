"""Draw detections or ground truth on images, and arrange images on a sheet."""

import colorsys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from accelerated.data.text_files import written_whole

# Of a mask's fill.
OPACITY = 0.45
# Larger pictures are looked at shrunk to about so many pixels, and lines and letters allow for it.
SCREEN = 1000
# Height of letters in pixels, at least and on a screen.
LETTERS = 11, 14

RGB = tuple[int, int, int]


def color(index: int) -> RGB:
    """Return the RGB color of the index-th object.

    Hues are a golden ratio apart, so that neighbours differ; saturation and brightness alternate.
    """
    hue = (0.58 + index * 0.618033988749895) % 1
    red, green, blue = colorsys.hsv_to_rgb(
        hue, 0.5 + 0.3 * (index % 2), 1.0 - 0.15 * (index // 2 % 2)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: ArrayLike,
    detections: Any,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    scale: int = 1,
    by_class: bool = False,
) -> np.ndarray:
    """Draw translucent masks, outlines, boxes, and each object's class name and score.

    image       [H, W, 3]  RGB, 0..255
    detections  Detections, CroppedDetections or Target: boxes [D, 4] xyxy pixels, labels [D] in
                1..K, masks [D, H, W] or None, scores [D] (a Target has none);
                arrays, or tensors on any device
    names       [K]        names of the classes 1..K
    threshold              minimum score of an object that is drawn, 0..1
    scale                  integer factor that enlarges the picture, for legible text
    by_class               colour the objects of a class alike, so that colours stay the same from
                           frame to frame; otherwise each object has its own
    Returns     [H * scale, W * scale, 3] uint8.

    Lines and letters grow with the picture. Large objects are drawn first, so that they do not
    cover small ones. In a crowd, a narrow box gets only its class name (only its score, if there is
    a single class) or a shorter text or none; of overlapping texts, only the higher score's is
    drawn. Of a Target with a single class the name is omitted.
    """
    boxes, labels = _numpy(detections.boxes) * scale, _numpy(detections.labels)
    given_scores = getattr(detections, "scores", None)
    scores = np.ones(len(boxes)) if given_scores is None else _numpy(given_scores)
    shown = np.flatnonzero(scores >= threshold)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    large_first = shown[np.argsort(-area[shown], kind="stable")]
    best_first = shown[np.argsort(-scores[shown], kind="stable")]

    colors = [color(int(k) - 1 if by_class else i) for i, k in enumerate(labels)]

    canvas = np.clip(_numpy(image), 0, 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    line = max(1, round(max(canvas.shape) / (SCREEN / 2)))
    window_of = _windows(detections)
    if window_of is not None:
        for index in large_first:
            _blend(canvas, *window_of(index), colors[index], scale, line)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for index in large_first:
        x1, y1, x2, y2 = boxes[index].tolist()
        if x2 >= x1 and y2 >= y1:
            pen.rectangle((x1, y1, x2, y2), outline=colors[index], width=line)
    height, width = canvas.shape[:2]
    captions = _Captions(pen, height, width, len(shown))
    for index in best_first:
        score = "" if given_scores is None else f"{scores[index]:.2f}"
        name = _name(names, int(labels[index]))
        # With a single class the score tells more than the name.
        short = (name,) if len(names) > 1 else (score,)
        texts = f"{name} {score}" if score else short[0], *short, score.lstrip("0")
        captions.write(texts, boxes[index], colors[index])
    return np.asarray(picture)


def sheet(images: Sequence[np.ndarray], columns: int = 4, *, gap: int = 6) -> np.ndarray:
    """Arrange images row by row on white.

    images   [h, w, 3] uint8 each; shrunk or centred into a cell of the median size, never enlarged
    gap      pixels between two cells
    Returns  [H, W, 3] uint8.
    Raises ValueError without images.
    """
    if not len(images):
        raise ValueError("a sheet needs at least one image")
    height = int(np.median([image.shape[0] for image in images]))
    width = int(np.median([image.shape[1] for image in images]))
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


def sample(dataset: Any, count: int, seed: int = 0) -> np.ndarray:
    """Draw `count` random images of a data set with their objects on a sheet, [H, W, 3] uint8."""
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
    items = [dataset[int(index)] for index in chosen]
    return sheet([draw(item.image, item.target, dataset.class_names) for item in items])


def save(image: np.ndarray, path: str | Path) -> None:
    """Write an image, such as [H, W, 3] uint8, to a whole picture file, and create its folder.

    Raises ValueError if the file's ending is no picture format.
    """
    with written_whole(path, "wb") as file:
        # Only JPEG and WebP have a quality.
        Image.fromarray(image).save(file, quality=95)


class _Captions:
    """Texts at boxes of one picture that do not overlap each other."""

    def __init__(self, pen, height, width, count):
        self.pen, self.height, self.width = pen, height, width
        lowest, on_screen = LETTERS
        size = max(lowest, round(max(height, width) * on_screen / SCREEN))
        self.font = ImageFont.load_default(size=size)
        self.margin = max(1, size // 10)
        # Average distance of the objects, in pixels.
        self.spacing = np.sqrt(height * width / max(1, count))
        self.written = np.zeros((0, 4))

    def write(self, texts, box, rgb):
        """Write the first of `texts` that is short enough for the box, unless there is no room."""
        limit = max(self.spacing, 1.5 * (box[2] - box[0]))
        text = next((t for t in texts if self.pen.textlength(t, font=self.font) <= limit), "")
        area = self._free_area(self.pen.textbbox((0, 0), text, font=self.font), box)
        if not text or area is None:
            return
        self.written = np.vstack([self.written, area])
        self.pen.rectangle(tuple(area), fill=rgb)
        luminance = np.dot(rgb, (0.299, 0.587, 0.114))
        fill = "black" if luminance > 110 else "white"
        self.pen.text((area[0] + self.margin, area[1]), text, fill=fill, font=self.font)

    def _free_area(self, text_box, box):
        """Return [x1, y1, x2, y2]: above the box, else at its top, else below; None if occupied.

        It begins where the box begins, or ends where the box ends.
        """
        width, height = text_box[2] + 2 * self.margin, text_box[3] + 2 * self.margin
        places = product((box[0], box[2] - width), (box[1] - height, box[1], box[3]))
        for x, y in places:
            x = np.clip(x, 0, max(0, self.width - width))
            area = np.array([x, y, x + width, y + height])
            if 0 <= y <= self.height - height and not self._is_occupied(area):
                return area
        return None

    def _is_occupied(self, area):
        overlaps = (area[:2] < self.written[:, 2:]) & (self.written[:, :2] < area[2:])
        return overlaps.all(1).any()


def _windows(detections):
    """Return a function from an object's index to (pixels [h, w], top, left) of its mask, or None.

    A function, so that no more than one mask is copied to the CPU at a time.
    """
    crops, masks = getattr(detections, "crops", None), detections.masks
    if crops is not None:

        def window_of(index):
            crop = crops[index]
            return _numpy(crop.pixels), crop.top, crop.left

        return window_of
    return None if masks is None else lambda index: _tight(_numpy(masks[index]).astype(bool))


def _tight(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:0, :0], 0, 0
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return window, rows[0], columns[0]


def _blend(canvas, pixels, top, left, rgb, scale, line):
    """Fill a mask, given in its window, and draw its rim of `line` pixels, inside the mask."""
    inside = pixels.repeat(scale, 0).repeat(scale, 1)
    height, width = inside.shape
    view = canvas[top * scale : top * scale + height, left * scale : left * scale + width]
    core = np.pad(inside, 1)
    for _ in range(line):
        eroded = np.zeros_like(core)
        eroded[1:-1, 1:-1] = core[1:-1, 1:-1] & core[:-2, 1:-1] & core[2:, 1:-1]
        eroded[1:-1, 1:-1] &= core[1:-1, :-2] & core[1:-1, 2:]
        core = eroded
    rim = inside & ~core[1:-1, 1:-1]
    shades = np.round((1 - OPACITY) * np.arange(256)[:, None] + OPACITY * np.array(rgb))
    for channel, shade in zip(np.moveaxis(view, 2, 0), shades.T.astype(np.uint8), strict=True):
        channel[inside] = shade[channel[inside]]
    view[rim] = rgb


def _name(names, label):
    return names[label - 1] if 1 <= label <= len(names) else str(label)


def _numpy(x):
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
