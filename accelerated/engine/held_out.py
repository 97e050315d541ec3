"""The part of a data set that a run does not train on, kept in RUN/split."""

from pathlib import Path

from accelerated.data.coco import CocoDataset
from accelerated.data.formats import writing
from accelerated.data.split import split
from accelerated.data.text_files import parse_json, write_json


def hold_out(
    dataset: CocoDataset, run: Path, fraction: float, seed: int
) -> tuple[CocoDataset, CocoDataset, Path]:
    """Split the data of a run, see `split`; return both parts and the file of the second.

    RUN/split/split.json lists the image ids of both parts, and val.json is the validation part in
    COCO's format, with a link to its images beside it, so that `evaluate --data` takes it.
    A run that is resumed keeps its parts.
    Raises ValueError if the run was split in another way, or other images.
    """
    folder = run / "split"
    path, how = folder / "split.json", {"fraction": fraction, "seed": seed}
    if path.exists():
        train, val = _stored(path, dataset, how)
    else:
        found = [{instance.category_id for instance in r.objects} for r in dataset.records]
        train, val = split(found, fraction, seed)
    parts = [dataset.subset(indices) for indices in (train, val)]
    if not path.exists():
        write_json(folder / "val.json", parts[1].coco)
        writing.link_images(folder, dataset.image_root)
        ids = {name: part.image_ids for name, part in zip(("train", "val"), parts, strict=True)}
        write_json(path, how | ids)
    return parts[0], parts[1], folder / "val.json"


def _stored(path, dataset, how):
    """Return the indices of the parts that a file lists."""
    stored = parse_json(path)
    for name, value in how.items():
        if stored[name] != value:
            raise ValueError(
                f"{path.parent.parent} was split with {name} {stored[name]}, not {value}:"
                " choose another folder"
            )
    index = {image_id: k for k, image_id in enumerate(dataset.image_ids)}
    if sorted(map(str, index)) != sorted(map(str, [*stored["train"], *stored["val"]])):
        raise ValueError(f"{path} lists other images than the data has: choose another folder")
    return [[index[image_id] for image_id in stored[name]] for name in ("train", "val")]
