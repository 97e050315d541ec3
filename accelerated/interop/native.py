"""Tensor names of this project: those of `MaskRCNN.state_dict()`."""

from collections.abc import Collection, Mapping

import torch

from reference.config import Config


def recognises(names: Collection[str]) -> bool:
    """Return whether these are tensor names of this project."""
    return all(
        any(name.startswith(prefixes) for name in names)
        for prefixes in ("backbone.", ("rpn.logits.", "rpn.conv", "box_head."))
    )


def our_name(name: str) -> str | None:
    """Return the name itself."""
    return name


def their_name(name: str, config: Config) -> str | None:
    """Return the name itself."""
    return name


def ignored(name: str) -> bool:
    """Return False: every tensor is a weight."""
    return False


def nearest_preset(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return None: a checkpoint folder stores its configuration."""
    return None


def base_config(tensors: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> Config:
    """Raise ValueError: tensors alone do not determine the configuration."""
    raise ValueError(
        "these weights lack their config.json;"
        " pass the configuration, preset=NAME or preset=Config(...)"
    )
