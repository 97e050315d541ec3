"""What the command line shows: tables of data, of results, of comparisons."""

import sys

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def console() -> Console:
    """Standard output, 140 columns wide where it is no terminal; texts are shown as they are."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def table(title, columns, rows) -> Table:
    out = Table(*columns, title=title, box=box.SIMPLE, title_justify="left", title_style="bold")
    for row in rows:
        out.add_row(*("" if value is None else str(value) for value in row))
    return out


def metrics(values) -> Table:
    """Of `engine.evaluate.evaluate`."""
    rows = [(kind, *("-" if values[kind][key] is None else f"{values[kind][key]:.3f}" for key in METRICS)) for kind in ("bbox", "segm")]
    return table("Average precision", ["", *METRICS], rows)


def class_metrics(values) -> Table:
    """The average precision of each class that has objects."""
    boxes, masks = (values[kind]["classes"] for kind in ("bbox", "segm"))
    rows = [(name, f"{boxes[name]:.3f}", f"{masks[name]:.3f}") for name in boxes if boxes[name] is not None and masks[name] is not None]
    return table("By class", ["", "bbox AP", "segm AP"], rows)


def verification(result, backends=("torch", "triton")) -> Table:
    """Of `verify.compare`: differences relative to the largest entry of a stage, and the largest of all in absolute numbers."""
    rows = [(row.stage, row.shape, *(row.text(name) for name in backends), row.largest, row.verdict) for row in result.rows]
    return table(result.title, ["stage", "shape", *(f"NumPy - {name}" for name in backends), "largest difference", "verdict"], rows)


def problems(found) -> Table:
    """Of `data.lint.check`, every one."""
    rows = [(p.severity, p.code, p.image_id, p.annotation_id, p.message) for p in found]
    return table(f"{len(found)} problems", ["severity", "code", "image", "annotation", "what"], rows)


def dataset(data) -> list[Table]:
    """Counts and sizes, and objects per class."""
    coco = data.coco
    objects = [a for a in coco["annotations"] if not a["iscrowd"]]
    counts, areas = np.array(data.object_counts), np.array([a["area"] for a in objects])
    heights, widths = np.array(data.sizes).reshape(-1, 2).T
    small, medium, large = np.histogram(areas, [0, 32**2, 96**2, np.inf])[0]
    rows = [
        ("images", len(data)),
        ("  without objects", int((counts == 0).sum())),
        ("  height, pixels", _spread(heights)),
        ("  width, pixels", _spread(widths)),
        ("objects", len(objects)),
        ("  per image", _spread(counts)),
        ("  area, pixels", _spread(areas)),
        ("  small, medium, large", f"{small} below 32x32, {medium}, {large} above 96x96"),
        ("crowd regions", len(coco["annotations"]) - len(objects)),
    ]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    per_class = dict.fromkeys(names, 0)
    for a in objects:
        per_class[a["category_id"]] += 1
    classes = sorted(((n, names[k], k) for k, n in per_class.items()), key=lambda row: (-row[0], row[2]))
    return [table("Data set", ["", ""], rows), table("Classes", ["objects", "class", "category id"], classes)]


def _spread(values):
    return f"{values.min():.0f} to {values.max():.0f}, median {np.median(values):.0f}" if len(values) else "-"
