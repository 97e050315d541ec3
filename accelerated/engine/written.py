"""What `predict` writes of pictures: drawings, objects cut out, masks, and lists of the objects."""

from collections.abc import Iterator, Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from accelerated.data.formats import labelme, yolo
from accelerated.data.text_files import write_json
from accelerated.drawing.detections import draw, save
from accelerated.engine import pictures, predictions
from accelerated.structures import CroppedDetections, Detections

# {format: writer} of labels in a folder of their own.
LABELS = {"labelme": labelme.write, "yolo": yolo.write}
# A drawing of a small picture is enlarged by the integer that brings its long side near to this.
READABLE = 640


class Writer:
    """Writes what is to be saved of pictures; each file whole or not at all.

    paths       {path: its name}, see `pictures.Found`
    output      the folder
    categories  of the labels 1..K
    saved       see `pictures.SAVED`
    """

    def __init__(
        self,
        paths: dict[Path, Path],
        output: Path,
        categories: Sequence[dict],
        saved: Sequence[str],
    ):
        self.output, self.saved = output, saved
        self.names = [category["name"] for category in categories]
        self.folders = pictures.folders(self.names)
        self.drawn, self.stems = pictures.drawings(paths, output), pictures.stems(paths)

    def add(
        self, path: Path, image: np.ndarray, detections: Detections, objects: list[dict]
    ) -> dict:
        """Write the files of one picture, and add what is in them to its objects.

        Returns {"drawing", "mask"}: their paths below the output folder, of those that are saved.
        """
        record, stem = {}, self.stems[path]
        if "png" in self.saved:
            save(drawing(image, detections, self.names), self.drawn[path])
            record["drawing"] = str(self.drawn[path].relative_to(self.output))
        if "crops" in self.saved:
            crops = write_crops(image, detections, self.folders, stem, self.output / "crops")
            for entry, crop in zip(objects, crops, strict=True):
                entry["crop"] = crop and f"crops/{crop}"
        if "masks" in self.saved and isinstance(detections, CroppedDetections):
            mask = Path("masks") / stem.with_name(f"{stem.name}.png")
            record["mask"] = mask.as_posix()
            height, width = image.shape[:2]
            visible = write_numbers(detections, self.output / mask, (height, width))
            for number, (entry, pixels) in enumerate(zip(objects, visible, strict=True), start=1):
                entry |= {"number": number, "visible": pixels}
        return record

    def finish(self, content: dict) -> None:
        """Write the lists of all objects: of a COCO data set, unless it has no images."""
        saved = self.saved if content["images"] else ()
        if "json" in saved:
            write_json(self.output / "predictions.json", content)
        if "csv" in saved:
            path = self.output / "predictions.csv"
            with predictions.csv_file(path, predictions.COLUMNS) as table:
                table.writerows(predictions.rows(content))
        if "masks" in saved:
            write_numbers_list(content, self.output / "masks" / "objects.csv")
        for name in LABELS.keys() & set(saved):
            LABELS[name](content, self.output / name)


def drawing(
    image: np.ndarray, detections: Any, names: Sequence[str], by_class: bool = False
) -> np.ndarray:
    """Draw all detections on a picture, see `draw`; a small one is enlarged to be legible."""
    scale = max(1, READABLE // max(image.shape))
    return draw(image, detections, names, threshold=0, scale=scale, by_class=by_class)


def write_crops(
    image: np.ndarray, detections: Detections, folders: list[str], name: Path, root: Path
) -> list[str | None]:
    """Cut each object out of a picture, as FOLDER/NAME_1.png, FOLDER/NAME_2.png, ..

    folders  below `root`, of the labels 1..K
    name     of the picture, without ending
    Returns the files' paths below `root`; None for an object without a pixel.
    """
    paths = []
    labels = detections.labels.tolist()
    for number, (label, pixels) in enumerate(zip(labels, _cut(image, detections), strict=True), 1):
        path = Path(folders[label - 1]) / name.with_name(f"{name.name}_{number}.png")
        paths.append(path.as_posix() if pixels.size else None)
        if pixels.size:
            save(pixels, root / path)
    return paths


def _cut(image, detections) -> Iterator[np.ndarray]:
    """Yield the pixels of each object: [h, w, 4], transparent and black outside of its mask.

    Without masks they are those of its box, [h, w, 3].
    """
    if not isinstance(detections, CroppedDetections):
        height = len(image)
        for x1, y1, x2, y2 in detections.boxes.tolist():
            top, left = max(0, floor(y1)), max(0, floor(x1))
            yield image[top : max(top, min(height, ceil(y2))), left : max(left, ceil(x2))]
        return
    for crop in detections.crops:
        mask = crop.pixels.numpy()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            yield image[:0, :0]
            continue
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None]
        top, left = crop.top + rows[0], crop.left + columns[0]
        window = image[top : top + mask.shape[0], left : left + mask.shape[1]]
        yield np.concatenate([window, np.full_like(window[..., :1], 255)], axis=2) * mask


def write_numbers(detections: CroppedDetections, path: Path, size: tuple[int, int]) -> list[int]:
    """Write a picture of `size` (H, W) whose pixels are the number of their object, 0 for none.

    Objects count from 1 by falling score; a pixel of several is that of the first. A picture of
    more than 255 objects has 16 bits.
    Returns how many pixels each object got.
    """
    count = len(detections.labels)
    numbers = np.zeros(size, np.uint8 if count < 256 else np.uint16)
    for number, crop in enumerate(detections.crops, start=1):
        height, width = crop.pixels.shape
        window = numbers[crop.top : crop.top + height, crop.left : crop.left + width]
        window[crop.pixels.numpy() & (window == 0)] = number
    save(numbers, path)
    return np.bincount(numbers.ravel(), minlength=count + 1)[1:].tolist()


def write_numbers_list(content: dict, path: Path) -> None:
    """Write which object each number in the pictures of `write_numbers` is, as a table."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    masks = {image["id"]: image["mask"] for image in content["images"]}
    with predictions.csv_file(path, ("mask", "number", "class", "score", "visible")) as table:
        for annotation in content["annotations"]:
            table.writerow(
                annotation
                | {"mask": Path(masks[annotation["image_id"]]).relative_to("masks").as_posix()}
                | {"class": names[annotation["category_id"]]}
            )
