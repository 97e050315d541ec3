"""Find objects in pictures and in frames of videos: one at a time, or several of one shape."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from accelerated.data import images
from accelerated.engine import pictures, predictions, video, views
from accelerated.engine.classes import of_model
from accelerated.engine.tiles import Find, Tiles, tiled
from accelerated.engine.views import View
from accelerated.interop.names import is_unused
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch, Detections, PaddedDetections
from accelerated.transform import resized_shape

if TYPE_CHECKING:
    from pandas import DataFrame

# Batches among which pictures are sorted by shape.
AHEAD = 8


def finder(
    model: MaskRCNN,
    categories: Sequence[dict],
    *,
    threshold: float = 0.5,
    tta: Sequence[View] = (),
    tiles: Tiles | None = None,
    batch_size: int = 1,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
) -> Find:
    """Return what finds the objects in images by one forward pass over all of them.

    categories  of the labels 1..K; those that stand for no class are left out
    batch_size  tiles in a forward pass
    The other arguments are those of `predict`.
    """
    run = views.detector(model, tta, compile, graph, amp)
    # Low scores may tell what to join.
    lowest = threshold if tiles is None else 0.0
    # Labels that stand for no class, such as ten of torchvision's for COCO, are not offered.
    usable = torch.tensor([False, *(not is_unused(category) for category in categories)])

    def confident(arrays: list, batch: Batch) -> PaddedDetections:
        padded = run(arrays, batch)
        valid = padded.valid & (padded.scores >= lowest)
        return padded._replace(valid=valid & usable.to(valid.device)[padded.labels.clamp(min=0)])

    def find(arrays: list) -> Sequence[Detections]:
        return model.detect(arrays, run=partial(confident, arrays), crops=True)

    return find if tiles is None else tiled(find, tiles, batch_size, threshold)


class Input(NamedTuple):
    """A picture, or a frame of a video: where it is from, and what reads its pixels.

    read         returns [H, W, 3] uint8 RGB; raises ValueError or OSError
    frame, time  number of the frame in the video, from 0, and its time in seconds
    """

    path: Path
    read: Callable[[], np.ndarray]
    frame: int | None = None
    time: float | None = None


class Looked(NamedTuple):
    """An input with its pixels [H, W, 3] and Detections; or with the reason why it has none."""

    input: Input
    image: Any
    detections: Any
    failure: str | None = None


def look(find: Find, batches: Iterable[list[Input]]) -> Iterator[Looked]:
    """Read the inputs of one batch after the other, and find their objects.

    Where a batch fails, each of its images is tried alone.
    """
    for batch in batches:
        inputs, arrays = [], []
        for item in batch:
            try:
                arrays.append(item.read())
                inputs.append(item)
            except (ValueError, OSError) as error:
                yield Looked(item, None, None, _line(error))
        for item, image, found in zip(inputs, arrays, _each(find, arrays), strict=True):
            failed = isinstance(found, str)
            yield Looked(item, None, None, found) if failed else Looked(item, image, found)


def _each(find, arrays):
    """Yield the detections of each image, or the reason why there are none."""
    if not arrays:
        return
    try:
        found = list(find(arrays))
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        found = [_line(error)] if len(arrays) == 1 else None
    # Here the memory of what failed is free.
    yield from found or (outcome for array in arrays for outcome in _each(find, [array]))


def _line(error):
    return " ".join(str(error).split())


def inputs_of(
    paths: Iterable[Path], exif: str, pixel_range: tuple[float, float] | None
) -> list[Input]:
    """Return pictures as inputs, see `images.read`."""
    return [Input(path, partial(images.read, path, exif, pixel_range)) for path in paths]


def by_shape(
    inputs: Sequence[Input], size: int, model: MaskRCNN, exif: str
) -> Iterator[list[Input]]:
    """Yield batches of at most `size` pictures that the network sees in one shape.

    So the detections in a picture do not depend on the others, but for the last bits. Pictures are
    sorted by shape among so many at a time as fill 8 batches; batches of one keep their order.
    """
    if size == 1:
        yield from ([item] for item in inputs)
        return
    for start in range(0, len(inputs), AHEAD * size):
        groups = defaultdict(list)
        for item in inputs[start : start + AHEAD * size]:
            groups[_shape(item.path, model, exif)].append(item)
        for group in groups.values():
            yield from (group[first : first + size] for first in range(0, len(group), size))


def _shape(path, model, exif):
    """Return the shape of a picture in the network; of an unreadable one its path."""
    transform = model.config.transform
    try:
        width, height = images.probe(path, decode=False).size(exif)
    except (ValueError, OSError):
        return path
    sides = height, width
    if transform.min_size:
        sides = resized_shape(height, width, transform.min_size[-1], transform)
    divisor = transform.size_divisor or 1
    return tuple(-(-side // divisor) for side in sides)


def consecutive(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    """Yield batches of at most `size` frames that follow each other and have one shape."""
    batch, shape = [], None
    for item in inputs:
        sides = item.read().shape
        if batch and sides != shape:
            yield batch
            batch = []
        batch.append(item)
        shape = sides
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class Finding:
    """The objects found in a picture, or in a frame of a video.

    path         of the picture or the video
    size         its (height, width) in pixels, as read
    detections   by falling score: CroppedDetections, whose `crops` hold each mask in a window; of a
                 model without masks, Detections
    categories   {"id", "name"} of the labels 1..K
    frame, time  number of the frame in the video, from 0, and its time in seconds
    """

    path: Path
    size: tuple[int, int]
    detections: Detections
    categories: Sequence[dict]
    frame: int | None = None
    time: float | None = None
    _read: Callable[[], np.ndarray] = field(kw_only=True, repr=False)

    @property
    def class_names(self) -> list[str]:
        """The class of each object."""
        labels = self.detections.labels.tolist()
        return [self.categories[label - 1]["name"] for label in labels]

    @property
    def image(self) -> np.ndarray:
        """The pixels, [H, W, 3] uint8 RGB. Those of a picture are read again."""
        return self._read()

    def table(self) -> "DataFrame":
        """Return a pandas table with a row per object, see `predictions.table`."""
        height, width = self.size
        record = {"width": width, "height": height, "file_name": str(self.path)}
        if self.frame is not None:
            record |= {"frame": self.frame, "time": self.time}
        content = predictions.empty(self.categories)
        predictions.add(content, record, predictions.objects(self.detections, self.categories))
        return predictions.table(content)


def detections(
    model: MaskRCNN,
    inputs: Iterable[str | Path],
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    recursive: bool = False,
    exif: str = "apply",
    pixel_range: tuple[float, float] | None = None,
    every: int = 1,
    seconds: float | None = None,
    tta: Sequence[View] = (),
    tiles: Tiles | None = None,
    compile: str | None = None,
    graph: bool = False,
    amp: bool = False,
    failed: list[tuple[str, str]] | None = None,
) -> Iterator[Finding]:
    """Detect objects in pictures and videos, and yield a Finding of each picture and frame.

        for found in accelerated.detections(model, ["photos"], batch_size=8):
            print(found.path, found.class_names, found.detections.boxes)

    inputs  picture files, folders (their pictures, by name), globs, videos and cameras
    failed  receives (path, reason) of each input that cannot be read, or of a video that ends
            early; None: raise ValueError instead
    The other arguments are those of `predict`.

    Pictures come in the order of `inputs`, then videos, each when it is asked for: nothing is
    written, and memory does not grow with their number.
    Raises ValueError if `inputs` match no file.
    """
    found = pictures.find(inputs, recursive)
    categories = of_model(model)
    how = {"tta": tta, "tiles": tiles, "batch_size": batch_size, "compile": compile}
    find = finder(model, categories, threshold=threshold, **how, graph=graph, amp=amp)
    # In tiles, a batch is cut from one picture.
    together = batch_size if tiles is None else 1

    def finding(looked: Looked) -> Finding:
        path, read, frame, time = looked.input
        height, width = looked.image.shape[:2]
        size = height, width
        return Finding(path, size, looked.detections, categories, frame, time, _read=read)

    def fail(path: Path, reason: str) -> None:
        if failed is None:
            raise ValueError(reason if str(path) in reason else f"{path}: {reason}")
        failed.append((str(path), reason))

    items = inputs_of(found.pictures, exif, pixel_range)
    ready: dict[Path, Finding | str] = {}
    waiting = list(reversed(items))
    for looked in look(find, by_shape(items, together, model, exif)):
        path = looked.input.path
        ready[path] = finding(looked) if looked.failure is None else looked.failure
        while waiting and waiting[-1].path in ready:
            path = waiting.pop().path
            outcome = ready.pop(path)
            if isinstance(outcome, str):
                fail(path, outcome)
            else:
                yield outcome
    for path in found.videos:
        try:
            with video.opened(path) as opened:
                frames = video.frames(opened, every, seconds)
                shown = (Input(path, frame.read, frame.number, frame.time) for frame in frames)
                for looked in look(find, consecutive(shown, together)):
                    if looked.failure is not None:
                        raise ValueError(looked.failure)
                    yield finding(looked)
            if opened.ended is not None:
                fail(path, opened.ended)
        except (ValueError, OSError) as error:
            fail(path, _line(error))
