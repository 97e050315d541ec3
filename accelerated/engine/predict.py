"""Detect objects in picture files: draw each picture, and list all objects in COCO's format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track

from accelerated import processes
from accelerated.data import images, rle
from accelerated.data.formats import labelme, yolo
from accelerated.data.text_files import write_json
from accelerated.drawing.detections import draw, save
from accelerated.engine import group, pictures
from accelerated.engine.capture import detector
from accelerated.engine.classes import of_model
from accelerated.engine.evaluate import coco_results
from accelerated.engine.pictures import Found
from accelerated.interop.names import is_unused
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch, PaddedDetections

# {format: writer} of labels in a folder of their own.
LABELS = {"labelme": labelme.write, "yolo": yolo.write}
# A drawing of a small picture is enlarged by the integer that brings its long side near to this.
READABLE = 640


@dataclass(frozen=True)
class Result:
    """What `predict` found.

    predictions  as in predictions.json
    failed       (picture, reason) of each failure
    turned       number of read pictures with an EXIF orientation, applied or not
    found        the inputs, and what was passed over in folders
    """

    predictions: dict
    failed: list[tuple[str, str]]
    turned: int
    found: Found


@dataclass
class _Outcome:
    """What became of a picture: its entry among the images and its detections, or the failure."""

    path: str
    record: dict = field(default_factory=dict)
    results: list[dict] = field(default_factory=list)
    turned: bool = False
    failure: str | None = None


def predict(
    model: MaskRCNN,
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    categories: list[dict] | None = None,
    threshold: float = 0.5,
    recursive: bool = False,
    exif: str = "apply",
    pixel_range: tuple[float, float] | None = None,
    saved: Sequence[str] = ("json", "png"),
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    bar: bool = False,
) -> Result:
    """Detect objects in each picture of `inputs` and draw them.

    inputs      files, folders (their pictures, by name) and globs
    output      folder for predictions.json (COCO: images, categories, annotations with "score") and
                the drawn pictures, named by `pictures.drawings`
    categories  {"id", "name"} of each of the model's labels 1..K; None: the model's
    threshold   minimum score of a detection, 0..1
    recursive   search the folders in folders too
    exif        "apply": turn pictures upright by their EXIF orientation; "ignore": as stored
    pixel_range the values that become 0 and 255 in pictures of 16 or 32 bits, see `images.read`
    saved       what is written: "json", "png" (the drawings), "labelme" and "yolo" (folders of
                labels, see `data.formats`)
    compile, graph, amp
                see `capture.detector`

    An image of predictions.json has, besides COCO's keys, "exif", as above, for width, height,
    boxes and masks are those of that frame; and "drawing", its path below `output`.
    A picture that cannot be read or is too large for the device is skipped and listed in `failed`.
    An interrupted run still writes the predictions for the pictures before; nothing is written
    without any. No more masks are held in memory than fill the picture once.
    Of several processes each takes its share of the pictures; the first writes all predictions and
    returns them.
    Raises ValueError if `inputs` match no file.
    """
    run = detector(model, compile, graph, amp)
    output = Path(output)
    found = pictures.find(inputs, recursive, output)
    drawn = pictures.drawings(found.pictures, output)
    # No process draws before all have listed the folders.
    group.barrier()
    own = list(found.pictures)[processes.rank() :: processes.number()]
    categories = categories or of_model(model)
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    # Labels that stand for no class, such as ten of torchvision's for COCO, are not offered.
    offered = [category for category in categories if not is_unused(category)]
    usable = torch.tensor([False, *(category in offered for category in categories)])
    outcomes: list[_Outcome] = []

    def confident(batch: Batch) -> PaddedDetections:
        padded = run(batch)
        valid = padded.valid & (padded.scores >= threshold)
        return padded._replace(valid=valid & usable.to(valid.device)[padded.labels.clamp(min=0)])

    def look(path: Path) -> _Outcome:
        try:
            turned = images.probe(path, decode=False).orientation > 1
            image = images.read(path, exif, pixel_range)
            [detections] = model.detect([image], run=confident, crops=True)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            return _Outcome(str(path), failure=" ".join(str(error).split()))
        height, width = image.shape[:2]
        record = {"width": width, "height": height, "file_name": str(path), "exif": exif}
        if "png" in saved:
            scale = max(1, READABLE // max(image.shape))
            save(draw(image, detections, names, threshold=0, scale=scale), drawn[path])
            record["drawing"] = str(drawn[path].relative_to(output))
        return _Outcome(str(path), record, coco_results(detections, ids), turned)

    def write(outcomes: list[_Outcome]) -> dict:
        predictions = _predictions(outcomes, offered)
        if predictions["images"] and "json" in saved:
            write_json(output / "predictions.json", predictions)
        return predictions

    try:
        for path in track(own, "detecting", disable=not bar):
            outcomes.append(look(path))
    except BaseException:
        # The other processes may not answer.
        if processes.number() == 1:
            write(outcomes)
        raise
    parts = group.collect(outcomes)
    if parts is None:
        return Result(_predictions([], offered), [], 0, found)
    outcomes = group.alternate(parts)
    predictions = write(outcomes)
    for name in LABELS.keys() & set(saved) if predictions["images"] else ():
        LABELS[name](predictions, output / name)
    failed = [(seen.path, seen.failure) for seen in outcomes if seen.failure is not None]
    return Result(predictions, failed, sum(seen.turned for seen in outcomes), found)


def _predictions(outcomes, categories):
    """Make a COCO data set of the pictures that were read, with their detections."""
    predictions = {"images": [], "categories": categories, "annotations": []}
    for seen in outcomes:
        if seen.failure is None:
            _add(predictions, seen.record, seen.results)
    return predictions


def _add(predictions, record, results):
    """Append an image and its detections, in COCO's result format, to a COCO data set."""
    image_id = len(predictions["images"]) + 1
    predictions["images"].append({"id": image_id} | record)
    for result in results:
        if "segmentation" in result:
            area = rle.area(rle.decompress(result["segmentation"]["counts"]))
        else:
            area = result["bbox"][2] * result["bbox"][3]
        annotation_id = len(predictions["annotations"]) + 1
        annotation = {"id": annotation_id, "image_id": image_id, "area": area, "iscrowd": 0}
        predictions["annotations"].append(annotation | result)
