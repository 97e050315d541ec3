"""Detect objects in pictures and videos: draw each, and list all objects in COCO's format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from accelerated import processes
from accelerated.data import images
from accelerated.engine import group, pictures, predictions, video
from accelerated.engine.classes import of_model
from accelerated.engine.filmed import Filmed, film
from accelerated.engine.finding import Looked, by_shape, finder, inputs_of, look
from accelerated.engine.pictures import OF_VIDEOS, Found
from accelerated.engine.tiles import Tiles
from accelerated.engine.views import View
from accelerated.engine.written import Writer
from accelerated.interop.names import is_unused
from accelerated.mask_rcnn import MaskRCNN

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Result:
    """What `predict` found.

    predictions  in pictures, as in predictions.json
    failed       (path, reason) of each failure
    turned       number of read pictures with an EXIF orientation, applied or not
    found        the inputs, and what was passed over in folders
    videos       what was found in each video
    """

    predictions: dict
    failed: list[tuple[str, str]]
    turned: int
    found: Found
    videos: list[Filmed] = field(default_factory=list)

    def table(self) -> "DataFrame":
        """Return a pandas table with a row per object in pictures, see `predictions.table`."""
        return predictions.table(self.predictions)


@dataclass
class _Outcome:
    """What became of a picture: its entry among the images and its objects, or the failure."""

    path: str
    record: dict = field(default_factory=dict)
    objects: list[dict] = field(default_factory=list)
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
    batch_size: int = 1,
    every: int = 1,
    seconds: float | None = None,
    tta: Sequence[View] = (),
    tiles: Tiles | None = None,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    bar: bool = False,
) -> Result:
    """Detect objects in each picture and video of `inputs`, draw them, and list them.

    inputs      files, folders (their pictures, by name), globs, videos and cameras (camera:0)
    output      folder for predictions.json (COCO: images, categories, annotations with "score") and
                the drawn pictures, named by `pictures.drawings`
    categories  {"id", "name"} of each of the model's labels 1..K; None: the model's
    threshold   minimum score of a detection, 0..1
    recursive   search the folders in folders too
    exif        "apply": turn pictures upright by their EXIF orientation; "ignore": as stored
    pixel_range the values that become 0 and 255 in pictures of 16 or 32 bits, see `images.read`
    saved       what is written: "json", "png" (the drawings), "csv" (predictions.csv, see
                `predictions.table`), "crops" and "masks" (see `written`), "labelme" and "yolo"
                (folders of labels, see `data.formats`); of a video "json", "png" and "csv", see
                `filmed.film`
    batch_size  pictures of one shape, or frames, in a forward pass; see `finding.by_shape`
    every       look at every N-th frame of a video
    seconds     end a video after so many; None: at its end, and a camera by Ctrl-C
    tta         what of each image is looked at, see `views.parse`; none: the image as it is
    tiles       detect in tiles of larger pictures, see `tiles.parse`; None: in whole pictures
    compile, graph, amp
                see `capture.detector`

    An image of predictions.json has, besides COCO's keys, "exif", as above, for width, height,
    boxes and masks are those of that frame; "drawing" and "mask", their paths below `output`. An
    annotation may have "crop", its path, and "number" and "visible", see `written.write_numbers`.
    A picture that cannot be read or is too large for the device is skipped and listed in `failed`.
    An interrupted run still writes the predictions for the pictures before; nothing is written
    without any. No more masks are held in memory than fill the picture once, in tiles more.
    Of several processes each takes its share of the pictures; the first writes all predictions and
    returns them.
    Raises ValueError if `inputs` match no file, and for what cannot be written of them.
    """
    output = Path(output)
    found = pictures.find(inputs, recursive, output)
    _check(model, found, saved, every, seconds)
    categories = categories or of_model(model)
    writer = Writer(found.pictures, output, categories, saved)
    films = pictures.films(found.videos, output)
    # No process draws before all have listed the folders.
    group.barrier()
    own = list(found.pictures)[processes.rank() :: processes.number()]
    offered = [category for category in categories if not is_unused(category)]
    how = {"tta": tta, "tiles": tiles, "batch_size": batch_size, "compile": compile}
    find = finder(model, categories, threshold=threshold, **how, graph=graph, amp=amp)
    # In tiles, a batch is cut from one picture.
    together = batch_size if tiles is None else 1
    outcomes: dict[Path, _Outcome] = {}

    def outcome(looked: Looked) -> _Outcome:
        path, image, detections = looked.input.path, looked.image, looked.detections
        if looked.failure is not None:
            return _Outcome(str(path), failure=looked.failure)
        height, width = image.shape[:2]
        record = {"width": width, "height": height, "file_name": str(path), "exif": exif}
        objects = predictions.objects(detections, categories)
        record |= writer.add(path, image, detections, objects)
        turned = images.probe(path, decode=False).orientation > 1
        return _Outcome(str(path), record, objects, turned)

    def in_order() -> list[_Outcome]:
        return [outcomes[path] for path in own if path in outcomes]

    looked = look(find, by_shape(inputs_of(own, exif, pixel_range), together, model, exif))
    try:
        for one in track(looked, "detecting", total=len(own), disable=not bar or not own):
            outcomes[one.input.path] = outcome(one)
    except BaseException:
        # The other processes may not answer.
        if processes.number() == 1:
            writer.finish(_content(in_order(), offered))
        raise
    parts = group.collect(in_order())
    if parts is None:
        return Result(predictions.empty(offered), [], 0, found)
    seen = group.alternate(parts)
    content = _content(seen, offered)
    writer.finish(content)
    failed = [(one.path, one.failure) for one in seen if one.failure is not None]
    videos = []
    for path, target in films.items():
        how = {"batch_size": together, "every": every, "seconds": seconds, "bar": bar}
        try:
            videos.append(film(find, path, target, categories, saved, **how))
        except ValueError as error:
            failed.append((str(path), " ".join(str(error).split())))
    return Result(content, failed, sum(one.turned for one in seen), found, videos)


def _check(model, found, saved, every, seconds):
    """Raise ValueError for what cannot be written of the inputs."""
    if "masks" in saved and model.config.mask_head.kind == "none":
        raise ValueError("--save masks: the model finds boxes without masks; leave it out")
    for path in found.videos:
        others = ",".join(kind for kind in saved if kind not in OF_VIDEOS)
        if others:
            kinds = ",".join(OF_VIDEOS)
            raise ValueError(f"--save {others}: of a video, {path}, there is {kinds} only")
        if processes.number() > 1:
            raise ValueError(f"{path}: several processes share pictures only; start one for videos")
        video.require(path)
    for option, given in (("--every", every != 1), ("--seconds", seconds is not None)):
        if given and not found.videos:
            raise ValueError(
                f"{option} is for videos and cameras, and no input is one: leave it out"
            )


def _content(outcomes, categories):
    """Make a COCO data set of the pictures that were read, with their detections."""
    content = predictions.empty(categories)
    for seen in outcomes:
        if seen.failure is None:
            predictions.add(content, seen.record, seen.objects)
    return content
