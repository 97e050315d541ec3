"""What was found, as a data set of COCO's, and as rows of a table."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from accelerated.data import rle
from accelerated.data.text_files import written_whole
from accelerated.engine.evaluate import coco_results
from accelerated.structures import Detections

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns of a table of objects; those of frames have besides:
COLUMNS = ("picture", "picture_width", "picture_height", "number", "class", "score")
COLUMNS += ("x", "y", "width", "height", "area")
OF_FRAMES = ("frame", "time")


def empty(categories: Sequence[dict]) -> dict:
    """Return a COCO data set without images."""
    return {"images": [], "categories": list(categories), "annotations": []}


def objects(detections: Detections, categories: Sequence[dict]) -> list[dict]:
    """Convert detections to COCO's annotations, without ids, by falling score.

    categories  of the labels 1..K
    """
    results = coco_results(detections, [category["id"] for category in categories])
    for result in results:
        if "segmentation" in result:
            area = rle.area(rle.decompress(result["segmentation"]["counts"]))
        else:
            area = result["bbox"][2] * result["bbox"][3]
        result["area"] = area
    return results


def add(content: dict, record: dict, found: Sequence[dict]) -> None:
    """Append an image and its `objects` to a COCO data set."""
    image_id = len(content["images"]) + 1
    content["images"].append({"id": image_id} | record)
    for annotation in found:
        annotation_id = len(content["annotations"]) + 1
        first = {"id": annotation_id, "image_id": image_id, "area": annotation["area"]}
        content["annotations"].append(first | {"iscrowd": 0} | annotation)


def rows(content: dict) -> Iterator[dict]:
    """Yield a row per object, by COLUMNS, of frames also OF_FRAMES; numbers count from 1."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    images, counts = {image["id"]: image for image in content["images"]}, {}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        counts[image["id"]] = counts.get(image["id"], 0) + 1
        seen = image["file_name"], image["width"], image["height"], counts[image["id"]]
        what = names[annotation["category_id"]], annotation["score"]
        row = (*seen, *what, *annotation["bbox"], annotation["area"])
        time = {name: image[name] for name in OF_FRAMES if name in image}
        yield dict(zip(COLUMNS, row, strict=True)) | time


def table(content: dict) -> "DataFrame":
    """Return the rows of a COCO data set of predictions as a pandas table.

    picture                        path
    picture_width, picture_height  in pixels
    number                         of the object in the picture, from 1, by falling score
    class, score                   name, and 0..1
    x, y, width, height            box in pixels, from its left upper corner
    area                           of the mask in pixels, without masks of the box
    frame, time                    of a video: number from 0, and seconds

    Raises ValueError without pandas.
    """
    try:
        import pandas
    except ImportError:
        need = "a table needs the package pandas"
        raise ValueError(f"{need}: pip install 'maskrcnn-triton[pandas]'") from None
    of_frames = any("frame" in image for image in content["images"])
    return pandas.DataFrame(
        list(rows(content)), columns=[*COLUMNS, *(OF_FRAMES if of_frames else ())]
    )


@contextmanager
def csv_file(path: Path, columns: Sequence[str]) -> "Iterator[csv.DictWriter]":
    """Open a table for writing that gets its name when all of it is on the disk."""
    with written_whole(path, "wb") as file:
        # Names of files need not be UTF-8.
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        yield writer
        text.detach()
