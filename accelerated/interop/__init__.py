"""Checkpoints in other formats, our operators under torchvision's models, exported programs.

The formats are those of torchvision, detectron2, maskrcnn-benchmark and Caffe2.
"""

from accelerated.interop.loading import (
    BareBackboneError,
    Loaded,
    backbone_config,
    load,
    load_backbone,
    parameters,
    read_model,
    save,
)
from accelerated.interop.substitution import use_our_operators

__all__ = [
    "BareBackboneError",
    "Loaded",
    "backbone_config",
    "load",
    "load_backbone",
    "parameters",
    "read_model",
    "save",
    "use_our_operators",
]
