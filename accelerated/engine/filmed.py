"""Detect objects in a video: draw its frames as a video, and list the objects of each."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.progress import track

from accelerated.data.text_files import written_whole
from accelerated.engine import predictions, video
from accelerated.engine.finding import Find, Input, Looked, consecutive, look
from accelerated.engine.interruption import interruptible
from accelerated.engine.written import drawing


@dataclass(frozen=True)
class Filmed:
    """What `predict` found in a video.

    path       of the video or camera
    written    the files
    frames     that were looked at
    objects    in all of them
    has_sound  whether it has sound, which the drawn video lacks
    ended      what is wrong with its frames, such as where they end too early; None: nothing
    """

    path: str
    written: list[str]
    frames: int
    objects: int
    has_sound: bool
    ended: str | None


def film(
    find: Find,
    path: Path,
    drawn: Path,
    categories: Sequence[dict],
    saved: Sequence[str],
    *,
    batch_size: int = 1,
    every: int = 1,
    seconds: float | None = None,
    bar: bool = False,
) -> Filmed:
    """Detect objects in every N-th frame of a video file or camera.

    drawn  path of the drawn video; the lists of objects are beside it
    saved  "png": the drawn video, .mp4; "json": a .jsonl file with a line per frame; "csv": a .csv
           file with a row per object

    A signal such as that of Ctrl-C ends the video: its files are finished, and then the signal is
    obeyed, unless it was Ctrl-C and this is a camera.
    Raises ValueError if no frame can be read; nothing is written then.
    """
    frames = objects = 0
    with interruptible() as asked, video.opened(path) as opened, ExitStack() as files:
        kinds = [kind for kind in WRITERS if kind in saved]
        # What encoders take.
        rate = min(max(opened.rate / every, Fraction(1, 10_000)), Fraction(1000))
        rate = rate.limit_denominator(1_000_000)
        writers = [
            files.enter_context(WRITERS[kind](_path(drawn, kind), categories, rate))
            for kind in kinds
        ]

        def inputs() -> Iterator[Input]:
            total = (opened.count // every or None) if seconds is None else None
            shown = video.frames(opened, every, seconds)
            for frame in track(shown, f"{path}", total=total, disable=not bar):
                if asked.stop:
                    return
                yield Input(path, frame.read, frame.number, frame.time)

        for looked in look(find, consecutive(inputs(), batch_size)):
            if looked.failure is not None:
                opened.ended = f"frames end at number {looked.input.frame}: {looked.failure}"
                break
            found = predictions.objects(looked.detections, categories)
            for write in writers:
                write(looked, found)
            frames, objects = frames + 1, objects + len(found)
        if not frames:
            raise KeyboardInterrupt if asked.stop else ValueError(f"{path}: {opened.ended}")
    if asked.stop and (asked.stop != signal.SIGINT or video.camera(path) is None):
        signal.raise_signal(asked.stop)
    written = [str(_path(drawn, kind)) for kind in kinds]
    return Filmed(str(path), written, frames, objects, opened.has_sound, opened.ended)


# What writes the objects of a frame.
Write = Callable[[Looked, list[dict]], Any]


@contextmanager
def _drawn(path, categories, rate) -> Iterator[Write]:
    names = [category["name"] for category in categories]
    with written_whole(path, "wb") as file, closing(video.Film(file, rate)) as made:

        def write(looked: Looked, _: list[dict]) -> None:
            picture = drawing(looked.image, looked.detections, names, by_class=True)
            made.add(picture, looked.input.time or 0.0)

        yield write


@contextmanager
def _lines(path, categories, _) -> Iterator[Write]:
    names = {category["id"]: category["name"] for category in categories}
    with written_whole(path) as file:

        def write(looked: Looked, found: list[dict]) -> None:
            named = [{"class": names[x["category_id"]]} | x for x in found]
            file.write(json.dumps(_record(looked) | {"annotations": named}) + "\n")

        yield write


@contextmanager
def _rows(path, categories, _) -> Iterator[Write]:
    columns = (*predictions.COLUMNS, *predictions.OF_FRAMES)
    with predictions.csv_file(path, columns) as table:

        def write(looked: Looked, found: list[dict]) -> None:
            content = predictions.empty(categories)
            record = {"file_name": str(looked.input.path)} | _record(looked)
            predictions.add(content, record, found)
            table.writerows(predictions.rows(content))

        yield write


def _record(looked):
    height, width = looked.image.shape[:2]
    time = {"frame": looked.input.frame, "time": looked.input.time}
    return time | {"width": width, "height": height}


# {what is saved: its writer}, and the ending of its file.
WRITERS = {"png": _drawn, "json": _lines, "csv": _rows}
ENDINGS = {"png": ".mp4", "json": ".jsonl", "csv": ".csv"}


def _path(drawn, kind):
    return drawn.with_suffix(ENDINGS[kind])
