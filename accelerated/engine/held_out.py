"""The part of a data set that a run does not train on, kept in RUN/split."""

from pathlib import Path, PurePosixPath

from accelerated.data.coco import CocoDataset
from accelerated.data.formats import writing
from accelerated.data.split import classes_of_images, split
from accelerated.data.text_files import parse_json, write_json


def hold_out(
    dataset: CocoDataset, run: Path, fraction: float, seed: int
) -> tuple[CocoDataset, CocoDataset, Path]:
    """Split the data of a run, see `split`; return both parts and the file of the second.

    RUN/split/split.json lists the images of both parts, and val.json is the validation part in
    COCO's format, with a link to its images beside it, so that `evaluate --data` takes it.
    A run that is resumed keeps its parts.
    Raises ValueError if the run was split in another way, or other images.
    """
    folder = run / "split"
    path, how = folder / "split.json", {"fraction": fraction, "seed": seed}
    known = path.exists()
    if known:
        train, val = _stored(path, dataset, how)
    else:
        train, val = split(classes_of_images(dataset), fraction, seed)
    parts = [dataset.subset(indices) for indices in (train, val)]
    if not known or not (folder / "val.json").exists():
        write_json(folder / "val.json", parts[1].coco)
    # The images may have moved since.
    writing.link_images(folder, dataset.image_root)
    if not known:
        ids = {name: part.image_ids for name, part in zip(("train", "val"), parts, strict=True)}
        # In the order of the ids, to tell other data of the same ids.
        files = {"files": [name for part in parts for name in part.file_names]}
        write_json(path, how | ids | files)
    return parts[0], parts[1], folder / "val.json"


def _stored(path, dataset, how):
    """Return the indices of the parts that a file lists."""
    index = {image_id: k for k, image_id in enumerate(dataset.image_ids)}
    try:
        stored = parse_json(path)
        before = {name: stored[name] for name in how}
        ids, files = [*stored["train"], *stored["val"]], list(stored.get("files", ()))
        same = sorted(map(str, ids)) == sorted(map(str, index)) and index.keys() == set(ids)
        names = [PurePosixPath(name).name for name in files]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{path}: damaged ({error}); restore it, or choose another folder for the run"
        raise ValueError(text) from None
    for name, value in how.items():
        if before[name] != value:
            raise ValueError(
                f"{path.parent.parent} was split with {name} {before[name]}, not {value}:"
                " choose another folder"
            )
    other = f"{path} lists other images than the data has"
    if not same:
        raise ValueError(f"{other}: choose another folder")
    # Files written before have no names; folders may have changed.
    for image_id, name in zip(ids, names, strict=False):
        now = dataset.file_names[index[image_id]]
        if PurePosixPath(now).name != name:
            raise ValueError(f"{other}: {image_id} was {name}, now {now}; choose another folder")
    return [[index[image_id] for image_id in stored[name]] for name in ("train", "val")]
