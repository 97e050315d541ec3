"""Batches for training and evaluation, prepared in worker processes and finished on the device.

Training batch i is a function of (seed, i) alone. Shuffling, augmentation and the number of workers
have no other state, so a run resumed at iteration i continues bit for bit.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from accelerated import transform
from accelerated.data.augment import augment
from accelerated.data.dataset import Dataset
from accelerated.data.padding import Shapes
from accelerated.data.workers import PATIENCE, Board, follow_parent, share, watched
from accelerated.structures import RawBatch
from reference.config import Config, Transform


def loader(
    dataset: Dataset,
    config: Config,
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    training: bool,
    start_iteration: int = 0,
    iterations: int | None = None,
    flip_probability: float = 0.5,
    shapes: Shapes | None = None,
    part: tuple[int, int] = (0, 1),
    patience: float = PATIENCE,
) -> "Loader":
    """Return an iterable of batches, to be finished on the device by `transform.finish`.

    training             True: shuffled, augmented batches, landscape and portrait images apart as
                         far as possible. False: every image once, in order; the last batch may be
                         smaller
    start_iteration      index of the first training batch
    iterations           index after the last training batch; None: without end
    shapes               shapes to pad the batches to; None: each to its own images and objects
    part                 (k, n): for process k of n, the k-th of n equal slices of every training
                         batch, as it is in the whole batch; of the others every n-th, from the k-th
    patience             seconds that a batch is waited for while no worker begins or finishes an
                         image; without workers there is no limit

    Outlines are in the batch if the mask head's targets are drawn from them; then masks are left
    out, unless an object of the data set has no outline.

    Raises ValueError if there is nothing to train on. While iterating, raises RuntimeError naming
    the image and file that cannot be prepared, or at which a worker was killed or hangs. However
    the iteration ends, no worker is left.
    """
    if training and dataset.max_objects == 0:
        raise ValueError("no image has a labelled object: there is nothing to train on")
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if training:
        order = _Shuffled(dataset.sizes, batch_size, seed, start_iteration, iterations, part)
    else:
        indices = list(range(len(dataset)))
        firsts = range(0, len(dataset), batch_size)[part[0] :: part[1]]
        order = [(None, 0, indices[first : first + batch_size]) for first in firsts]
    drawn = config.mask_head.target == "polygon"
    prepared: Any = _Prepared(
        dataset,
        config.transform,
        config.num_classes,
        seed,
        flip_probability,
        shapes,
        drawn,
        Board(workers),
    )
    batches = torch.utils.data.DataLoader(
        prepared,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=follow_parent,
    )
    return Loader(batches, order, patience)


def epoch(
    sizes: Sequence[tuple[int, int]], batch_size: int, seed: int, index: int
) -> list[list[int]]:
    """Draw the batches of image indices of epoch `index`, with every image at least once.

    sizes  (height, width) of each image

    Batches are all landscape or all portrait, except for the remainders of both; the last of these
    is filled up with images from the epoch's beginning. All epochs have as many batches.
    """
    rng = np.random.default_rng([seed, 1, index])
    order = rng.permutation(len(sizes))
    is_portrait = np.array([height > width for height, width in sizes])[order]
    full, remainders = [], []
    for group in (order[is_portrait], order[~is_portrait]):
        whole = len(group) // batch_size * batch_size
        full.append(group[:whole])
        remainders.append(group[whole:])
    rest = np.concatenate(remainders)
    filling = np.resize(order, -len(rest) % batch_size)
    batches = np.concatenate([*full, rest, filling]).reshape(-1, batch_size)
    return batches[rng.permutation(len(batches))].tolist()


@dataclass
class Loader:
    """The batches; see `loader`."""

    batches: torch.utils.data.DataLoader
    order: Any
    patience: float

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Generator[RawBatch, None, None]:
        prepared: Any = self.batches.dataset
        source = watched(self.batches, prepared.board, prepared.name, self.patience)
        with closing(source):
            for batch in source:
                if isinstance(batch, _Failure):
                    raise RuntimeError(batch.message)
                yield batch


@dataclass
class _Shuffled:
    """Yields (iteration, first slot, image indices) of the training batches `start` to `stop`."""

    sizes: list
    batch_size: int
    seed: int
    start: int
    stop: int | None
    part: tuple[int, int] = (0, 1)

    def __iter__(self):
        iteration, current, batches = self.start, None, []
        length = len(epoch(self.sizes, self.batch_size, self.seed, 0))
        process, processes = self.part
        count = self.batch_size // processes
        first = process * count
        while self.stop is None or iteration < self.stop:
            index, position = divmod(iteration, length)
            if index != current:
                current, batches = index, epoch(self.sizes, self.batch_size, self.seed, index)
            yield iteration, first, batches[position][first : first + count]
            iteration += 1


@dataclass
class _Failure:
    """The message of an exception, which would drown in the traceback of a worker."""

    message: str


@dataclass
class _Prepared:
    """Maps (iteration or None, first slot, image indices) to a RawBatch or a _Failure."""

    dataset: Dataset
    transform: Transform
    num_classes: int
    seed: int
    flip_probability: float
    shapes: Shapes | None
    # Whether mask targets are drawn from outlines.
    drawn: bool
    board: Board

    def __getitem__(self, task):
        batch = self.batch(*task)
        self.board.write(-1)
        return batch

    def name(self, index):
        """Name an image and its file."""
        return f"image {self.dataset.image_ids[index]}, file {self.dataset.file_names[index]!r}"

    def batch(self, iteration, first, indices):
        """Return the RawBatch or _Failure of some images."""
        ids = [self.dataset.image_ids[index] for index in indices]
        prepared, sizes = [], []
        for slot, index in enumerate(indices, start=first):
            self.board.write(index)
            try:
                *image, size = self.prepare(iteration, slot, index)
            except Exception as error:
                return _Failure(f"{self.name(index)}: {error}")
            prepared.append(image)
            sizes.append(size)
        sides = slots = points = None
        if self.shapes is not None:
            _, resized, targets = zip(*prepared, strict=True)
            counts = [len(target.labels) for target in targets]
            sides, slots = self.shapes.of_batch(resized, counts)
            points = self.dataset.max_points
        try:
            batch = transform.collate_pixels(
                prepared,
                self.transform,
                sizes,
                ids,
                max_objects=slots,
                pad_to=sides,
                max_points=points,
            )
            if torch.utils.data.get_worker_info() is not None:
                share(batch.tensors().values())
        except ValueError as error:
            return _Failure(f"images {', '.join(map(str, ids))}: {error}")
        return batch

    def prepare(self, iteration, slot, index):
        """Read one image, and augment it if it is for a training iteration.

        Returns what `prepare_pixels` does, and the sides of the image as read.
        """
        image, target, _ = self.dataset[index]
        size, min_size = image.shape[:2], None
        # Nothing learns from the masks of an evaluation.
        masks = iteration is not None and not (self.drawn and self.dataset.outlined)
        target = target if self.drawn else replace(target, polygons=None)
        if iteration is not None:
            transform.check_labels(target, self.num_classes)
            rng = np.random.default_rng([self.seed, 2, iteration, slot])
            image, target, min_size = augment(
                image, target, self.transform, rng, self.flip_probability
            )
        prepared = transform.prepare_pixels(image, target, self.transform, min_size, masks=masks)
        return *prepared, size
