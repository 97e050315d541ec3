"""The layout of the heads' outputs: which column, deltas and mask channel belong to each label.

Legend: K classes. Labels 1..K are objects, 0 is the background.
"""

from dataclasses import dataclass, replace

import numpy as np

from reference.config import Config
from reference.structures import Array


@dataclass(frozen=True)
class Layout:
    """The order of `columns` outputs: label l stands in column first + l - 1.

    classes     K, or 1 if all objects share column `first` (`agnostic`)
    background  column of label 0, or None if the background has no output
    """

    columns: int
    classes: int
    first: int
    background: int | None
    agnostic: bool = False

    @classmethod
    def background_first(cls, classes: int) -> "Layout":
        """Background, then the classes (torchvision)."""
        return cls(classes + 1, classes, first=1, background=0)

    @classmethod
    def background_last(cls, classes: int) -> "Layout":
        """The classes, then the background (detectron2)."""
        return cls(classes + 1, classes, first=0, background=classes)

    @classmethod
    def objects_only(cls, classes: int) -> "Layout":
        """The classes, without a background."""
        return cls(classes, classes, first=0, background=None)

    @property
    def objects(self) -> slice:
        """The columns of labels 1..K, in this order."""
        return slice(self.first, self.first + self.classes)

    def column(self, labels: Array) -> Array:
        """Map labels 0..K to columns; without a background, label 0 to a valid but unused one."""
        classes = np.minimum(labels, 1) if self.agnostic else labels
        return np.where(labels > 0, self.first + classes - 1, self.background or 0)


def class_layout(config: Config) -> Layout:
    """Return the layout of the class logits [R, K + 1]."""
    if config.background == "first":
        return Layout.background_first(config.num_classes)
    return Layout.background_last(config.num_classes)


def delta_layout(config: Config) -> Layout:
    """Return the layout of the box deltas [R, columns, 4]; torchvision has the background's too."""
    if config.background == "first":
        return Layout.background_first(config.num_classes)
    return Layout.objects_only(config.num_classes)


def mask_layout(config: Config) -> Layout:
    """Return the layout of the mask logits [R, columns, S, S].

    A softmax needs a background channel; torchvision has one unless masks are class-agnostic.
    """
    head = config.mask_head
    if head.class_agnostic:
        one_class = replace(config, num_classes=1)
        layout = class_layout(one_class) if head.loss == "softmax" else Layout.objects_only(1)
        return replace(layout, agnostic=True)
    return class_layout(config) if head.loss == "softmax" else delta_layout(config)
