"""Functions of one's own that augment training images: found by name, and checked at each call."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from accelerated.data.mixing import Sample
from accelerated.structures import Target
from accelerated.transform import check_labels, check_target
from reference.config import Augment

# An image [H, W, 3] uint8, its target and a generator -> an image and its target.
Function = Callable[[np.ndarray, Target, np.random.Generator], Sample]


def prepared(
    augment: Augment, function: Function | None, num_classes: int, fixed_shapes: bool
) -> Function | None:
    """Return the function that augments, with a check of what it returns at each call, or None.

    function      in place of the one that `augment` names; None: that one
    fixed_shapes  whether batches have shapes that are known before

    Raises ValueError if there is no such function, or if it cannot be used.
    """
    if function is None and augment.function is None:
        return None
    if fixed_shapes:
        raise ValueError(
            f"augment.function = {augment.function or function} may return images of any size:"
            " leave out --fixed-shapes"
        )
    if function is None:
        function = find(str(augment.function))
    return checked(function, num_classes)


def find(name: str) -> Function:
    """Import the function that "module:name" names; the current folder is searched first.

    Raises ValueError if there is none.
    """
    where = f"augment.function = {name}"
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{where}: expected module:name, for example my_file:my_function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    # Somebody's module may raise anything.
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{where}: a {type(function).__name__}, which cannot be called")
    return function


def checked(function: Function, num_classes: int) -> Function:
    """Return the function with a check of what it returns at each call.

    The check raises ValueError, in one line, for an image or a target that does not fit.
    """
    name = getattr(function, "__qualname__", type(function).__name__)

    def call(image, target, rng):
        try:
            result = function(image, target, rng)
        # Somebody's function may raise anything.
        except Exception as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{name} raised {type(error).__name__}: {text}") from error
        try:
            return _check(result, num_classes)
        except ValueError as error:
            raise ValueError(f"{name} returned what does not fit: {error}") from None

    return call


def _check(result, num_classes):
    """Return (image, target) of which every part fits the others."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Target):
        raise ValueError("expected (image, Target)")
    image, target = result
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError("image: expected an array [H, W, 3] of uint8")
    height, width, channels = image.shape
    if channels != 3 or not image.size:
        raise ValueError(f"image: expected [H, W, 3], got {list(image.shape)}")
    try:
        parts = [torch.as_tensor(x) for x in (target.boxes, target.labels, target.masks)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target: {' '.join(str(error).split())}") from None
    boxes, labels, masks = parts
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"target: labels [G] must be whole numbers, got {labels.dtype}")
    if masks.dtype != torch.bool:
        raise ValueError(f"target: masks [G, H, W] must be bool, got {masks.dtype}")
    target = Target(boxes, labels, masks, target.polygons)
    boxes = check_target(target, height, width, torch.float32).boxes
    check_labels(target, num_classes)
    outside = (boxes < 0) | (boxes > torch.tensor([width, height] * 2))
    if outside.any():
        row = int(outside.any(1).int().argmax())
        raise ValueError(
            f"target: box {row} is {boxes[row].tolist()}, outside of the image of"
            f" {width}x{height}; clip it"
        )
    return image, replace(target, boxes=boxes)
