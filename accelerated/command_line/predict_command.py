"""The command `predict`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accelerated.command_line import loading
from accelerated.command_line.arguments import (
    Amp,
    Backend,
    Changes,
    Compile,
    Device,
    FilePreset,
    Graph,
    InTiles,
    Names,
    Output,
    Patience,
    PixelRange,
    Threshold,
    Tta,
    Weights,
)
from accelerated.engine.pictures import SAVED

if TYPE_CHECKING:
    from accelerated.engine.predict import Result


def draw_predictions(
    context: typer.Context,
    checkpoint: Weights,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Picture files, folders or glob patterns; video files and cameras (camera:0).",
            metavar="IMAGES...",
        ),
    ],
    output: Output = Path("predictions"),
    threshold: Threshold = 0.5,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", help="Search folders in folders, and keep them in the output."),
    ] = False,
    save: Annotated[
        str,
        typer.Option(
            help="What to write, separated by commas: json (predictions.json in COCO's format), png"
            " (drawings; those of .jpg pictures are .jpg), csv (predictions.csv, a row per object),"
            " crops (each object cut out), masks (pictures of object numbers), labelme, yolo"
            " (folders of labels, to be corrected by hand or trained on). Of videos: json, png,"
            " csv.",
            metavar="LIST",
        ),
    ] = "json,png",
    exif: Annotated[
        str,
        typer.Option(
            help="How to read pictures. apply: turned upright by their EXIF orientation; ignore: as"
            " stored, for a model that was trained on stored frames."
        ),
    ] = "apply",
    pixel_range: PixelRange = None,
    batch_size: Annotated[
        int,
        typer.Option(
            help="Pictures of one shape, frames of a video or tiles in a forward pass (default:"
            " 1).",
            min=1,
            show_default=False,
        ),
    ] = 1,
    every: Annotated[
        int,
        typer.Option(
            help="Look at every N-th frame of a video (default: 1, every frame).",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = 1,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="End a video or camera after so many seconds (default: at the end of the file, and"
            " a camera by Ctrl-C).",
            min=0.001,
        ),
    ] = None,
    tta: Tta = None,
    tiles: InTiles = None,
    device: Device = "auto",
    backend: Backend = "auto",
    amp: Amp = False,
    compile: Compile = False,
    graph: Graph = False,
    preset: FilePreset = None,
    changes: Changes = None,
    names: Names = None,
    patience: Patience = 1800.0,
) -> None:
    """Detect objects in pictures, draw them, and write them to a JSON file in COCO's format.

    Unreadable pictures are reported and skipped. See docs/prediction.md.
    """
    saved = tuple(filter(None, (word.strip() for word in save.split(","))))
    if not saved or set(saved) - set(SAVED):
        raise ValueError(f"--save {save}: expected one or more of {','.join(SAVED)}")
    reading = loading.reading(exif=exif, pixel_range=pixel_range)
    torch_device = loading.select_device(device, backend)
    loading.join(context, torch_device, patience)
    from accelerated.engine.predict import predict

    looking = loading.looking(tta, tiles)
    model, categories = loading.load_model(checkpoint, torch_device, preset, changes, names)
    result = predict(
        model,
        images,
        output,
        categories=categories,
        threshold=threshold,
        recursive=recursive,
        exif=exif,
        pixel_range=reading.pixel_range,
        saved=saved,
        batch_size=batch_size,
        every=every,
        seconds=seconds,
        **looking,
        amp=amp,
        compile="inductor" if compile else None,
        graph=graph,
        bar=sys.stderr.isatty(),
    )
    for path, reason in result.failed:
        message = reason if path in reason else f"{path}: {reason}"
        print(f"maskrcnn: skipped: {message}", file=sys.stderr)
    for line in _summary(result, output, saved, exif):
        print(line)
    for seen in result.videos:
        if seen.ended is not None:
            print(f"maskrcnn: {seen.path}: {seen.ended}", file=sys.stderr)
    if result.failed:
        raise typer.Exit(2)


def _summary(result: "Result", output: Path, saved: tuple[str, ...], exif: str) -> Iterator[str]:
    """Yield the lines that say what was done; none of detections where no image could be read."""
    from accelerated.command_line import report

    objects, read = (len(result.predictions[key]) for key in ("annotations", "images"))
    if read:
        where = [f"Drawings: {output}."] * ("png" in saved)
        where += [f"Detections: {output / 'predictions.json'}."] * ("json" in saved)
        where += [f"Table: {output / 'predictions.csv'}."] * ("csv" in saved)
        folders = ("crops", "masks", "labelme", "yolo")
        where += [f"{name}: {output / name}." for name in folders if name in saved]
        counted = f"{report.count(objects, 'object')} in {report.count(read, 'image')}."
        yield " ".join([counted, *where])
    for seen in result.videos:
        counted = f"{report.count(seen.objects, 'object')} in {report.count(seen.frames, 'frame')}"
        sound = " The drawn video is without sound." if seen.has_sound and "png" in saved else ""
        yield f"{seen.path}: {counted}. Written: {', '.join(seen.written)}.{sound}"
    if result.turned:
        some = f"{result.turned} of {report.count(read, 'image')}"
        verb = "was" if result.turned == 1 else "were"
        done, other = (
            ("turned upright by EXIF orientation", "ignore keeps the stored frame")
            if exif == "apply"
            else ("read as stored, not as displayed", "apply follows the EXIF orientation")
        )
        yield f"{some} {verb} {done}; --exif {other}."
    found = result.found
    passed = (
        (found.hidden, "hidden file", ""),
        (found.others, "file that is no image", "files that are no images"),
        (found.films, "video (name it to read it)", "videos (name them to read them)"),
        (found.folders, "folder (--recursive searches it)", "folders (--recursive searches them)"),
    )
    texts = [report.count(*counted) for counted in passed if counted[0]]
    if texts:
        yield f"Passed over in folders: {', '.join(texts)}."
