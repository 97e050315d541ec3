"""Commands on data sets: inspect, import."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from accelerated.command_line import loading
from accelerated.command_line.arguments import (
    BoxesAsMasks,
    Changes,
    Crowd,
    Data,
    Exif,
    Images,
    PixelRange,
    Preset,
    Seed,
    Split,
)


def inspect_data(
    data: Data,
    images: Images = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Picture file for a sample of the images with their masks drawn."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Pictures in the sample.", min=1)] = 12,
    seed: Seed = 0,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment",
            help="Draw, with --output, what training sees: a row of versions of each image, with"
            " the augmentation of --preset and --set.",
        ),
    ] = False,
    preset: Preset = None,
    changes: Changes = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every problem, not a few of each kind.")
    ] = False,
    fix: Annotated[
        Path | None,
        typer.Option(
            help="New JSON file for a repaired copy in COCO's format; OUT.changes.json beside it"
            " lists each change.",
            metavar="OUT.json",
        ),
    ] = None,
    crowd: Crowd = "ignore",
    exif: Exif = None,
    boxes_as_masks: BoxesAsMasks = False,
    pixel_range: PixelRange = None,
    val: Annotated[
        Path | None,
        typer.Option(
            help="Validation data to compare with --data: classes that it lacks, and pictures that"
            " are in both."
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(help="Compare the parts that `train --split` with this --seed makes instead."),
    ] = None,
) -> None:
    """Summarise a data set, list its problems and, with --fix, repair a copy of it.

    It also says what is hard about the data, and which settings or pictures help. Objects are
    compared with the settings of --preset and --set, by default those of `train`.
    """
    from accelerated.command_line import report
    from accelerated.data import lint
    from accelerated.data import split as splitting
    from accelerated.data.coco import CocoDataset
    from accelerated.drawing import detections

    if val is not None and split is not None:
        raise ValueError("--split makes validation data of --data: leave --val out")
    if augment and output is None:
        raise ValueError("--augment draws a picture: name its file with --output")
    console = report.console()
    for path in (fix, _changes(fix)) if fix is not None else ():
        if path.exists():
            raise ValueError(f"--fix {fix}: {path} exists; choose another name")
    reading = loading.reading(crowd, exif, boxes_as_masks, pixel_range)
    result = lint.check(data, images, reading=reading)
    for table in report.problems(result, data.name, everything):
        console.print(table)
    if result.causes and not everything:
        console.print("--all lists every single problem.")
    if not result.fatal:
        dataset = CocoDataset(data, images, skip_invalid=True, reading=reading)
        _print_summary(dataset, preset, changes, console)
        config, train, other = _configuration(dataset, preset, changes)[1], dataset, None
        if split is not None:
            parts = splitting.split(splitting.classes_of_images(dataset), split, seed)
            train, other = map(dataset.subset, parts)
        elif val is not None:
            other = loading.open_dataset(val, images, skip_invalid=True, reading=reading)
        _print_hardness(train, other, val, config, console)
        if output is not None and len(dataset):
            page = (
                _augmented(dataset, samples, seed, preset, changes)
                if augment
                else detections.sample(dataset, samples, seed)
            )
            detections.save(page, output)
            console.print(f"Sample: {output}.")
    subject = "data"
    if fix is not None:
        repaired = _write_repaired(data, images, fix, reading, console)
        subject, result = ("repaired copy", repaired) if repaired else (subject, result)
    blocking = len(result.blocking)
    if blocking:
        remedies = ["Correct the file"]
        if not result.fatal and result.objects:
            remedies = ["Correct them", "train with --skip-invalid"]
        mended = 0 if fix is not None else blocking - _left_by_repair(data, images, reading, result)
        if mended > 0:
            some = "" if mended == blocking else f" without {mended} of them"
            remedies.append(f"write a repaired copy{some} with --fix OUT.json")
        console.print(f"Problems that stop training: {blocking}. {', or '.join(remedies)}.")
        raise typer.Exit(1)
    if not result.objects:
        console.print(f"The {subject} is valid, but there is no object to train on.")
        raise typer.Exit(1 if result.annotations else 0)
    console.print(f"The {subject} is ready for training.")


def _augmented(dataset, samples, seed, preset, changes):
    """Draw `samples` pictures, a row for each of some images."""
    import numpy as np

    from accelerated.command_line.configuration import configuration
    from accelerated.data import loader
    from accelerated.drawing import augmented

    config = configuration(preset, None, changes or [], None, lambda masks: dataset).config
    order = np.random.default_rng(seed).permutation(len(dataset))
    chosen = order[: -(-samples // augmented.VERSIONS)].tolist()
    count = min(samples, augmented.VERSIONS)
    versions = (loader.versions(dataset, config, index, count, seed) for index in chosen)
    return augmented.rows(versions, dataset.class_names, config)


def _configuration(dataset, name, changes):
    """Return the name of the preset, and the configuration that it becomes."""
    from accelerated.data.summary import default_preset
    from reference.config import override, preset

    name = name or default_preset(dataset.sizes)
    return name, override(preset(name), *(changes or []))


def _print_summary(dataset, preset, changes, console):
    """Print what the data set contains, and what its images are in the network's input."""
    from accelerated.command_line import introduction, report
    from accelerated.data.summary import input_objects, summary

    console.print(*report.dataset(summary(dataset)))
    name, config = _configuration(dataset, preset, changes)
    objects = input_objects(dataset, config.transform)
    if objects.count:
        text = introduction.describe_input(config.transform, objects)
        default = "by default, " if preset is None and not changes else ""
        console.print(f"What train sees {default}with the preset {name}: {text}.")
    if objects.advice:
        console.print(f"Warning: {objects.advice}.")


def _print_hardness(dataset, other, name, config, console):
    """Print what is hard about a data set, and what helps.

    other  the validation data; None: there is none yet
    name   that of the validation data; None: the part of a split
    """
    from accelerated.command_line import advice
    from accelerated.data import duplicates, hardness

    found = hardness.measure(dataset, config)
    if not found.objects:
        return
    lines = [*advice.settings(found, config), *advice.classes(found)]
    small = duplicates.thumbnails(dataset)
    if other is None:
        lines += [*advice.single_images(found), *advice.duplicates(duplicates.copies(small))]
    else:
        title = name or "the validation part"
        lines += advice.validation(found, hardness.measure(other, config), title, name is None)
        between = duplicates.copies(duplicates.thumbnails(other), small)
        lines += advice.duplicates(between, title)
    if lines:
        console.print("What is hard about this data, and what helps:")
    for line in lines:
        console.print(f"* {line}.", soft_wrap=True)


def _changes(path):
    """Return the path of the list of changes beside a repaired copy."""
    return path.with_suffix(".changes.json")


def _left_by_repair(data, images, reading, result):
    """Return how many of the problems that stop training a repaired copy would have."""
    from accelerated.data import sources
    from accelerated.data.repair import repair

    try:
        return len(repair(sources.find(data, images), reading).report.blocking)
    except ValueError:
        return len(result.blocking)


def _write_repaired(data, images, path, reading, console):
    """Write the repaired copy and the list of changes; return the linter's report on the copy.

    Returns None if there is nothing to repair.
    """
    from accelerated.command_line import report
    from accelerated.data import sources
    from accelerated.data.repair import repair
    from accelerated.data.text_files import write_json

    repaired = repair(sources.find(data, images), reading)
    if not repaired.changes:
        problems = repaired.report.problems
        reason = "No repair is known for these problems" if problems else "There is no problem"
        console.print(f"{reason}: {path} was not written.")
        return None
    write_json(path, repaired.content)
    write_json(_changes(path), [asdict(change) for change in repaired.changes])
    console.print(report.repairs(repaired.counts()))
    console.print(f"Repaired copy: {path}. Each change: {_changes(path)}.")
    if repaired.report.blocking:
        console.print(*report.problems(repaired.report, path.name))
    return repaired.report


def import_data(
    source: Annotated[
        Path,
        typer.Argument(help="Data set in any format of docs/data.md.", metavar="SOURCE"),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="JSON file in COCO format; for the other formats, a new folder.", metavar="OUTPUT"
        ),
    ],
    images: Images = None,
    format: Annotated[str, typer.Option(help="Format to write: coco, labelme or yolo.")] = "coco",
    split: Split = None,
    seed: Seed = 0,
    crowd: Crowd = "ignore",
) -> None:
    """Convert a data set to COCO's format, or to LabelMe's or YOLO's.

    Picture files are neither copied nor changed. With --split, OUTPUT_train and OUTPUT_val are
    written.
    """
    from accelerated.command_line import report
    from accelerated.data import lint, sources
    from accelerated.data.formats import conversion

    if format not in conversion.WRITERS:
        raise ValueError(f"--format {format}: expected {', '.join(conversion.WRITERS)}")
    parts = {output: None}
    if split is not None:
        parts = {output.with_stem(f"{output.stem}_{part}"): part for part in ("train", "val")}
    for path in parts:
        if path.exists():
            raise ValueError(f"{path} exists; choose another name")
    suffix = output.suffix.lower()
    if format == "coco" and suffix != ".json":
        raise ValueError(f"{output}: expected the name of a file, such as {output.stem}.json")
    if format != "coco" and suffix in (".json", ".yaml", ".yml", ".txt", ".xml", ".zip"):
        raise ValueError(f"{output}: --format {format} writes a folder; expected a name of one")
    found = sources.find(source, images)
    result = lint.read(found, reading=loading.reading(crowd))[1]
    console = report.console()
    for table in report.problems(result, source.name):
        console.print(table)
    if result.fatal:
        console.print(
            "Nothing was written. Correct the file, or see whether `inspect --fix` repairs it."
        )
        raise typer.Exit(1)
    content = conversion.content_of(found)
    if crowd == "objects":
        content = conversion.without_crowds(content)
    pieces = [content] if split is None else conversion.parts(content, split, seed)
    for path, piece in zip(parts, pieces, strict=True):
        lost = conversion.write(piece, path, format, found.image_root)
        counts = [
            report.count(len(piece["images"]), "image"),
            report.count(len(piece["annotations"]) - lost, "object"),
            report.count(len(piece["categories"]), "class", "classes"),
        ]
        console.print(f"{path}: {', '.join(counts)}.")
        if lost:
            left_out = report.count(lost, "annotation")
            console.print(f"Left out, because {format} has no place for them: {left_out}.")
    # A folder of labels has a link to its images.
    linked = all((path / "images").is_symlink() for path in parts)
    advice = "" if linked else f" To read the result, add --images {found.image_root}."
    console.print(f"Read as {found.format}.{advice}")
