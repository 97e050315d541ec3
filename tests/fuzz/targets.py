"""What is fuzzed: valid files of a kind, and what reads them."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors
from support import annotated, narrow, shapes_file

from accelerated.data import images, lint, rle
from accelerated.engine import checkpoint, log
from accelerated.interop import files, ranges
from reference.config import preset, to_dict

# Made by a pickle that executes what it names.
SPRUNG = "sprung"


@dataclass(frozen=True)
class Target:
    """A kind of files.

    file    where a file is written, below a folder
    seeds   valid files
    read    reads it, given the folder
    prepare writes what belongs beside it, once
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


class Trap:
    """Pickles as a command that leaves a file."""

    def __reduce__(self):
        import os

        return os.system, (f"touch {SPRUNG}",)


TENSORS = {"conv.weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2).half()}


def _pickles():
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    values = [arrays, {"model": arrays, "epoch": 3}, {"blobs": arrays, "a": [1, 2.5, None, b"x"]}]
    seeds = [pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 4, 5)]
    return [*seeds, pickle.dumps({"a": Trap()}, 2), pickle.dumps({"a": Trap()}, 0)]


def _saved(**options):
    def seeds():
        made = []
        parts = [TENSORS, {"model": TENSORS, "epoch": 3, "optimizer": [{"lr": 0.1}]}]
        for value in [*parts, {"a": torch.ones(1).expand(4)}, {"a": Trap()}]:
            stream = io.BytesIO()
            torch.save(value, stream, **options)
            made.append(stream.getvalue())
        return made

    return seeds


def _of_json(*values):
    return [json.dumps(value).encode() for value in values]


def _states():
    categories = [{"id": k, "name": f"c{k}"} for k in range(1, 5)]
    state = {"format": 1, "iteration": 3, "categories": categories, "settings": {"seed": 0}}
    return _of_json(state, state | {"settings": {}})


def _checkpoint(folder):
    (folder / "config.json").write_text(json.dumps(to_dict(narrow.config("tiny"))))
    for name in ("model.safetensors", "optimizer.safetensors"):
        (folder / name).write_bytes(safetensors(TENSORS))


def _logs():
    step = {"iteration": 5, "loss": 1.5, "mask": 0.5, "learning_rate": 0.1}
    lines = [{"iteration": 0, "weights": "a"}, step, {"iteration": 5, "evaluation": {}, "best": 5}]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


def _pictures(form, *modes, **options):
    def seeds():
        made = []
        for mode in modes:
            stream, pixels = io.BytesIO(), np.arange(12 * 17 * 3, dtype=np.uint8).reshape(12, 17, 3)
            picture = Image.fromarray(pixels)
            if mode == "I;16":
                picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250)
            exif = {"exif": Image.Exif()} if form in ("JPEG", "PNG", "WEBP") else {}
            for tag in exif.values():
                tag[images.ORIENTATION] = 6
            (picture if mode == "I;16" else picture.convert(mode)).save(
                stream, form, **options, **exif
            )
            made.append(stream.getvalue())
        return made

    return seeds


def _picture(name):
    def read(folder):
        path = folder / name
        try:
            header = images.probe(path)
        except images.ImageError:
            # What the linter refuses, reading need not; it may not fail in another way.
            images.read(path)
            raise
        pixels = images.read(path)
        assert pixels.dtype == np.uint8 and pixels.shape[1::-1] == header.size(None)

    return read


def _rle(folder):
    counts = rle.decompress((folder / "counts").read_bytes())
    size = int(counts.sum())
    if 0 <= size <= 1 << 16 and (counts >= 0).all():
        rle.bounds(counts, 16)
        assert rle.area(counts) <= size


def _coco(folder):
    return lint.check(folder / "data.json", folder / "images")


def _annotations(name):
    """Damage the largest text file of a data set; pictures stay whole."""
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        data = annotated.ALL[name](Path(made)).relative_to(made)
        texts = [p for p in sorted(Path(made).rglob("*.*")) if p.suffix in TEXTS]
        path = max(texts, key=lambda p: p.stat().st_size)
        whole, file = path.read_bytes(), str(path.relative_to(made))
    return Target(
        file,
        lambda: [whole],
        lambda folder: lint.check(folder / data),
        lambda folder: annotated.ALL[name](folder),
    )


TEXTS = {".json", ".txt", ".csv", ".xml", ".yaml"}
TARGETS = {
    "pickle": Target("a.pkl", _pickles, lambda folder: files.read(folder / "a.pkl")),
    "torch": Target("a.pth", _saved(), lambda folder: files.read(folder / "a.pth")),
    "older torch": Target(
        "a.pth",
        _saved(_use_new_zipfile_serialization=False),
        lambda folder: files.read(folder / "a.pth"),
    ),
    "safetensors": Target(
        "a.safetensors",
        lambda: [safetensors(TENSORS), safetensors({"a": torch.ones(1)}, {"format": "pt"})],
        lambda folder: files.read(folder / "a.safetensors"),
    ),
    "config": Target(
        "config.json",
        lambda: _of_json(*(to_dict(preset(n)) for n in ("tiny", "paper_vgg16"))),
        lambda folder: ranges.read(folder / "config.json"),
    ),
    "state": Target("state.json", _states, checkpoint.read, _checkpoint),
    "log": Target("log.jsonl", _logs, lambda folder: log.read(folder / "log.jsonl")),
    "rle": Target("counts", lambda: [b"05;1N2", rle.compress([3, 4, 9, 2, 40])], _rle),
    "coco": Target(
        "data.json",
        lambda: _of_json(shapes_file.data()),
        _coco,
        lambda folder: shapes_file.pictures(folder / "images"),
    ),
    **{
        f"{form.lower()} picture": Target(
            f"a.{form.lower()}", _pictures(form, *modes), _picture(f"a.{form.lower()}")
        )
        for form, modes in {
            "PNG": ("RGB", "P", "1", "RGBA", "I;16"),
            "JPEG": ("RGB", "L", "CMYK"),
            "WEBP": ("RGB", "RGBA"),
            "TIFF": ("RGB", "L", "I;16"),
            "GIF": ("P", "L"),
            "BMP": ("RGB", "P"),
        }.items()
    },
    **{
        name: _annotations(name)
        for name in annotated.ALL
        if name not in ("penn_fudan", "science_bowl", "image_and_mask_folders")
    },
}
