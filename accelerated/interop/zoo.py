"""Published checkpoints by name: what they are, where they are, and what their tensors do not show.

Torchvision's file names carry the first digits of the sha256, detectron2's those of the md5 (as its
MODEL_ZOO.md says); by them a file is recognised whatever it is called now.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

TORCHVISION = "https://download.pytorch.org/models/"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


@dataclass(frozen=True)
class Entry:
    """A published file.

    address    where it is; its last part is the file's name in the cache
    preset     of the models it belongs to
    licence    as its publisher states it for the project; the data it was trained on has its own
    digest     "sha256:bf2d0c1e": the algorithm and the first digits of the file's digest, or ""
    changes    FIELD=VALUE where it differs from the preset in what tensors do not show
    bytes      size to about a kilobyte, or None if the publisher does not state it
    """

    what: str
    address: str
    preset: str
    licence: str
    digest: str = ""
    changes: tuple[str, ...] = ()
    bytes: float | None = None

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.address.rpartition("/")[2]


def _torchvision(what, file, preset, mebibytes, *changes):
    digest = f"sha256:{Path(file).stem.rpartition('-')[2]}"
    size = mebibytes * 2**20
    return Entry(what, TORCHVISION + file, preset, "BSD-3-Clause", digest, changes, size)


def _detectron2(row):
    task, kind, schedule, file = row
    preset = PRESETS[kind]
    folder = {"mask": "COCO-InstanceSegmentation", "faster": "COCO-Detection"}[task]
    title, model = f"{task.title()} R-CNN", preset.removeprefix("detectron2_")
    entry = Entry(
        f"{title} {model.upper().replace('_', '-')} {schedule}, COCO",
        f"{DETECTRON2}{folder}/{task}_rcnn_{kind}_{schedule}/{file}",
        preset,
        "Apache-2.0",
        f"md5:{Path(file).stem.rpartition('_')[2]}",
    )
    return f"detectron2/{task}_rcnn_{model}_{schedule}", entry


V1, V2 = "torchvision_r50_fpn", "torchvision_r50_fpn_v2"
# Torchvision runs its COCO models of the first kind without an eps (SPEC §13).
NO_EPS = "backbone.norm_eps=0.0"
COCO = {
    "coco": _torchvision(
        "Mask R-CNN R50-FPN, COCO", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", V1, 169.84, NO_EPS
    ),
    "coco_v2": _torchvision(
        "Mask R-CNN R50-FPN v2, COCO", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", V2, 177.219
    ),
    "torchvision/faster_rcnn_r50_fpn": _torchvision(
        "Faster R-CNN R50-FPN, COCO",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        V1,
        159.743,
        NO_EPS,
    ),
    "torchvision/faster_rcnn_r50_fpn_v2": _torchvision(
        "Faster R-CNN R50-FPN v2, COCO", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", V2, 167.104
    ),
}
IMAGENET = {
    f"imagenet/{name}": _torchvision(f"{what}, ImageNet", file, preset, mebibytes)
    for name, what, file, preset, mebibytes in (
        ("resnet18", "ResNet-18", "resnet18-f37072fd.pth", V1, 44.661),
        ("resnet34", "ResNet-34", "resnet34-b627a593.pth", V1, 83.275),
        ("resnet50", "ResNet-50", "resnet50-0676ba61.pth", V1, 97.781),
        ("resnet50_v2", "ResNet-50, recipe 2", "resnet50-11ad3fa6.pth", V1, 97.79),
        ("resnet101", "ResNet-101", "resnet101-63fe2227.pth", V1, 170.511),
        ("resnet101_v2", "ResNet-101, recipe 2", "resnet101-cd907fc2.pth", V1, 170.53),
        ("resnext101_32x8d", "ResNeXt-101", "resnext101_32x8d-8ba56ff5.pth", V1, 339.586),
        ("vgg16", "VGG-16", "vgg16-397923af.pth", "paper_vgg16", 527.796),
    )
}
CAFFE = {
    f"imagenet_caffe/{name}": Entry(
        f"{what} of Caffe, ImageNet",
        f"{DETECTRON2}ImageNetPretrained/{file}",
        f"detectron2_{kind}_fpn",
        "Apache-2.0",
    )
    for name, what, file, kind in (
        ("resnet50", "ResNet-50", "MSRA/R-50.pkl", "r50"),
        ("resnet101", "ResNet-101", "MSRA/R-101.pkl", "r101"),
        ("resnext101_32x8d", "ResNeXt-101", "FAIR/X-101-32x8d.pkl", "x101"),
    )
}
PRESETS = {
    "R_50_FPN": "detectron2_r50_fpn",
    "R_101_FPN": "detectron2_r101_fpn",
    "X_101_32x8d_FPN": "detectron2_x101_fpn",
    "R_50_C4": "detectron2_r50_c4",
    "R_101_C4": "detectron2_r101_c4",
    "R_50_DC5": "detectron2_r50_dc5",
    "R_101_DC5": "detectron2_r101_dc5",
}
ROWS = (
    ("mask", "R_50_FPN", "1x", "137260431/model_final_a54504.pkl"),
    ("mask", "R_50_FPN", "3x", "137849600/model_final_f10217.pkl"),
    ("mask", "R_101_FPN", "3x", "138205316/model_final_a3ec72.pkl"),
    ("mask", "X_101_32x8d_FPN", "3x", "139653917/model_final_2d9806.pkl"),
    ("mask", "R_50_C4", "1x", "137259246/model_final_9243eb.pkl"),
    ("mask", "R_50_C4", "3x", "137849525/model_final_4ce675.pkl"),
    ("mask", "R_101_C4", "3x", "138363239/model_final_a2914c.pkl"),
    ("mask", "R_50_DC5", "1x", "137260150/model_final_4f86c3.pkl"),
    ("mask", "R_50_DC5", "3x", "137849551/model_final_84107b.pkl"),
    ("mask", "R_101_DC5", "3x", "138363294/model_final_0464b7.pkl"),
    ("faster", "R_50_FPN", "1x", "137257794/model_final_b275ba.pkl"),
    ("faster", "R_50_FPN", "3x", "137849458/model_final_280758.pkl"),
    ("faster", "R_101_FPN", "3x", "137851257/model_final_f6e8b1.pkl"),
    ("faster", "X_101_32x8d_FPN", "3x", "139173657/model_final_68b088.pkl"),
    ("faster", "R_50_C4", "1x", "137257644/model_final_721ade.pkl"),
    ("faster", "R_50_C4", "3x", "137849393/model_final_f97cb7.pkl"),
    ("faster", "R_101_C4", "3x", "138204752/model_final_298dad.pkl"),
    ("faster", "R_50_DC5", "1x", "137847829/model_final_51d356.pkl"),
    ("faster", "R_50_DC5", "3x", "137849425/model_final_68d202.pkl"),
    ("faster", "R_101_DC5", "3x", "138204841/model_final_3e0943.pkl"),
)
ENTRIES: dict[str, Entry] = COCO | IMAGENET | CAFFE | dict(map(_detectron2, ROWS))


def digest(path: Path, algorithm: str) -> str:
    """Compute the digest of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


def matches(path: Path, entry: Entry) -> bool:
    """Tell whether a file has the digest that its publisher states; True if none is stated."""
    algorithm, _, digits = entry.digest.partition(":")
    return not digits or digest(path, algorithm).startswith(digits)


def recognise(path: Path) -> str | None:
    """Name the entry that a file is, by its digest; None if there is none."""
    digests = {algorithm: digest(path, algorithm) for algorithm in ("sha256", "md5")}
    for name, entry in ENTRIES.items():
        algorithm, _, digits = entry.digest.partition(":")
        if digits and digests[algorithm].startswith(digits):
            return name
    return None
