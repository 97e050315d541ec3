"""Read and write checkpoints of torchvision, detectron2 and others."""

from accelerated.interop.loading import BareBackboneError, load, load_backbone, parameters, save

__all__ = ["BareBackboneError", "load", "load_backbone", "parameters", "save"]
