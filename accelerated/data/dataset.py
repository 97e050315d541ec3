"""The interface of a data set: what the loader, the evaluation and the drawings read."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from accelerated.structures import Target


class Item(NamedTuple):
    """One image: [H, W, 3] uint8 RGB, its Target without crowd regions, and its id."""

    image: np.ndarray
    target: Target
    image_id: Any


class Dataset(Protocol):
    """Images with annotated objects.

    image_ids, file_names, sizes  one per image; sizes are (height, width)
    category_ids, class_names     one per class; label k in 1..K is category_ids[k - 1]
    max_objects                   the most objects in an image
    max_points                    the most points of all outlines of an image
    outlined                      whether all objects have outlines
    """

    image_ids: list
    file_names: list[str]
    sizes: list[tuple[int, int]]
    category_ids: list[int]
    class_names: list[str]
    max_objects: int
    max_points: int
    outlined: bool
    # The ground truth as a COCO dictionary, for evaluation; "Any" admits a cached property.
    coco: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def instances(self) -> list[tuple[int, int, float, bool]]:
        """Return (image index, category id, area in pixels, crowd) of every annotation."""
        ...
