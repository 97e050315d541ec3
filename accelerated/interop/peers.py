"""The formats that can be read, told apart by tensor names; and those that are refused."""

import re
from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from accelerated.interop import detectron2, maskrcnn_benchmark, native, torchvision
from reference.config import Config


class Peer(Protocol):
    """A checkpoint format of detectors; each is a module with these functions."""

    @staticmethod
    def recognises(names: Collection[str]) -> bool:
        """Return whether these are tensor names of the format."""
        ...

    @staticmethod
    def our_name(name: str) -> str | None:
        """Translate a name of the format to ours; None if there is none."""
        ...

    @staticmethod
    def their_name(name: str, config: Config) -> str | None:
        """Translate our name to the format's; None if there is none."""
        ...

    @staticmethod
    def ignored(name: str) -> bool:
        """Return whether a tensor of the format holds no weights."""
        ...

    @staticmethod
    def nearest_preset(tensors: Mapping[str, torch.Tensor]) -> str | None:
        """Name the preset that tensors with our names look like."""
        ...

    @staticmethod
    def base_config(
        tensors: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
    ) -> Config:
        """Return that preset, with the settings that the tensors, by both names, reveal."""
        ...


PEERS: tuple[Peer, ...] = (maskrcnn_benchmark, torchvision, detectron2, native)

# (pattern of a tensor name, what it belongs to)
UNSUPPORTED = (
    (r"roi_heads\.box_predictor\.\d+\..+", "a Cascade R-CNN"),
    (r"roi_heads\.keypoint.+", "a Keypoint R-CNN"),
    (
        r"(.*\.)?head\.((cls|bbox)_(subnet|tower)|(classification|regression)_head)\..+",
        "a RetinaNet or a similar model",
    ),
    (r"sem_seg_head\..+", "a model for panoptic or semantic segmentation"),
    (r"roi_heads\.(mask_(coarse|point)_head|mask_head\.(coarse|point)_head)\..+", "PointRend"),
    (r".*conv2[._]offset\..+", "a model with deformable convolutions"),
    (r".*feature_extractor\.head\.layer4\..+", "a C4 model of maskrcnn-benchmark"),
    (r"backbone\.body\.\d+\..+", "a model with a MobileNet backbone"),
    (r"features\.1\.running_mean", "a VGG with batch normalisation"),
    (
        r"conv_rpn_.+|rpn_cls_logits_.+|cls_score_w",
        "a detector of Caffe2's Detectron (of Caffe2, only ImageNet backbones are supported)",
    ),
)


def find(names: Collection[str]) -> Peer | None:
    """Return the format of a detector with these tensor names, or None.

    Raises ValueError for a model that is not supported.
    """
    for pattern, model in UNSUPPORTED:
        for name in names:
            if re.fullmatch(pattern, name):
                raise ValueError(f"{name}: this is a checkpoint of {model}, which is not supported")
    return next((peer for peer in PEERS if peer.recognises(names)), None)
