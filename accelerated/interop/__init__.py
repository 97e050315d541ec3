"""Checkpoints in other formats: torchvision, detectron2, maskrcnn-benchmark and Caffe2."""

from accelerated.interop.loading import BareBackboneError, load, load_backbone, parameters, save

__all__ = ["BareBackboneError", "load", "load_backbone", "parameters", "save"]
