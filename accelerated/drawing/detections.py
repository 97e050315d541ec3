"""Draw detections or ground truth on images, and arrange images on a sheet."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

# Of a mask's fill.
OPACITY = 0.45

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
) -> np.ndarray:
    """Draw translucent masks, outlines, boxes, and each object's class name and score.

    image       [H, W, 3]  RGB, 0..255
    detections  Detections or Target: boxes [D, 4] xyxy pixels, labels [D] in 1..K,
                masks [D, H, W] or None, scores [D] (a Target has none);
                arrays, or tensors on any device
    names       [K]        names of the classes 1..K
    threshold              minimum score of an object that is drawn, 0..1
    scale                  integer factor that enlarges the picture, for legible text
    Returns     [H * scale, W * scale, 3] uint8.

    Large objects are drawn first, so that they do not cover small ones. In a crowd, a narrow box
    gets only its score or no text; of overlapping texts, only the higher score's is drawn; with a
    single class the name is omitted.
    """
    boxes, labels = _numpy(detections.boxes) * scale, _numpy(detections.labels)
    given_scores = getattr(detections, "scores", None)
    scores = np.ones(len(boxes)) if given_scores is None else _numpy(given_scores)
    shown = np.flatnonzero(scores >= threshold)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    large_first = shown[np.argsort(-area[shown], kind="stable")]
    best_first = shown[np.argsort(-scores[shown], kind="stable")]

    canvas = np.clip(_numpy(image), 0, 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    if detections.masks is not None:
        masks = _numpy(detections.masks)
        for index in large_first:
            _blend(canvas, masks[index].astype(bool), color(index), scale)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for index in large_first:
        x1, y1, x2, y2 = boxes[index].tolist()
        if x2 >= x1 and y2 >= y1:
            pen.rectangle((x1, y1, x2, y2), outline=color(index))
    height, width = canvas.shape[:2]
    captions = _Captions(pen, height, width, len(shown))
    for index in best_first:
        score = "" if given_scores is None else f"{scores[index]:.2f}"
        name = "" if len(names) == 1 else _name(names, int(labels[index]))
        texts = f"{name} {score}".strip(), score.lstrip("0")
        captions.write(texts, boxes[index], color(index))
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
    """Write an image, [H, W, 3] uint8, to a picture file, and create its folder.

    Raises ValueError if the file's ending is no picture format.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


class _Captions:
    """Texts at boxes of one picture that do not overlap each other."""

    def __init__(self, pen, height, width, count):
        self.pen, self.height, self.width = pen, height, width
        self.font = ImageFont.load_default(size=11 if max(height, width) < 1000 else 14)
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
        self.pen.text((area[0] + 1, area[1]), text, fill=fill, font=self.font)

    def _free_area(self, text_box, box):
        """Return [x1, y1, x2, y2]: above the box, else at its top, else below; None if occupied."""
        width, height = text_box[2] + 2, text_box[3] + 2
        x = np.clip(box[0], 0, max(0, self.width - width))
        for y in (box[1] - height, box[1], box[3]):
            area = np.array([x, y, x + width, y + height])
            if 0 <= y <= self.height - height and not self._is_occupied(area):
                return area
        return None

    def _is_occupied(self, area):
        overlaps = (area[:2] < self.written[:, 2:]) & (self.written[:, :2] < area[2:])
        return overlaps.all(1).any()


def _blend(canvas, mask, rgb, scale):
    """Fill the mask and draw its rim, inside the mask's bounding box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right].repeat(scale, 0).repeat(scale, 1)
    view = canvas[top * scale : bottom * scale, left * scale : right * scale]
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    view[inside] = np.round((1 - OPACITY) * view[inside] + OPACITY * np.array(rgb)).astype(np.uint8)
    view[inside & ~core] = rgb


def _name(names, label):
    return names[label - 1] if 1 <= label <= len(names) else str(label)


def _numpy(x):
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
