"""Split a data set into training and validation data."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from accelerated.data.dataset import Dataset

# Orders of the images that are tried before a class is left on one side.
ATTEMPTS = 20


def classes_of_images(dataset: Dataset) -> list[set[int]]:
    """Return the category ids of the objects of each image, without crowd regions."""
    found = [set() for _ in dataset.image_ids]
    for index, category_id, _, crowd in dataset.instances():
        found[index] |= set() if crowd else {category_id}
    return found


def split(
    image_categories: Sequence[Collection[Hashable]], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images by chance so that each class has its share on both sides.

    image_categories  the classes of the objects in each image
    fraction          of the images that become validation data, between 0 and 1
    seed              the same seed splits the same images in the same way

    Every class with at least two images appears on both sides where that is possible, for which a
    data set with many rare classes may give a larger fraction.
    Returns the indices of the training and of the validation images, rising.
    Raises ValueError for a fraction outside 0..1, or for fewer than two images.
    """
    count = len(image_categories)
    if not 0 < fraction < 1:
        raise ValueError(f"--split {fraction:g}: expected a fraction between 0 and 1, such as 0.2")
    if count < 2:
        raise ValueError(f"--split {fraction:g} needs two images at least, the data has {count}")
    classes = sorted({c for found in image_categories for c in found}, key=str)
    column = {name: k for k, name in enumerate(classes)}
    present = np.zeros((count, len(classes)), dtype=bool)
    for index, found in enumerate(image_categories):
        present[index, [column[name] for name in found]] = True
    generator = np.random.default_rng(seed)
    tries = []
    for _ in range(ATTEMPTS):
        chosen = _choose(present, fraction, generator)
        tries.append((_one_sided(present, chosen), len(tries), chosen))
        if not tries[-1][0]:
            break
    chosen = min(tries)[2]
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


def _choose(present, fraction, generator):
    """Choose validation images [n] bool, the rarest class first; `present` [n, classes] bool."""
    count = len(present)
    order = generator.permutation(count)
    chosen, open_ = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    totals = present.sum(axis=0)
    for column in np.argsort(totals, kind="stable"):
        images, total = order[present[order, column]], int(totals[column])
        wanted = min(max(round(fraction * total), 1), total - 1)
        missing = wanted - int(chosen[images].sum())
        undecided = images[open_[images]]
        chosen[undecided[: max(0, missing)]] = True
        open_[undecided] = False
    # Images without objects, so that the whole has the fraction.
    missing = min(max(round(fraction * count), 1), count - 1) - int(chosen.sum())
    chosen[order[open_[order]][: max(0, missing)]] = True
    return chosen


def _one_sided(present, chosen):
    """Count the classes with at least two images that are on one side only."""
    inside, totals = present[chosen].sum(axis=0), present.sum(axis=0)
    return int(((totals > 1) & ((inside == 0) | (inside == totals))).sum())
