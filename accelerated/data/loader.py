"""Batches for training and evaluation, prepared in worker processes and finished on the device.

Training batch i is a function of (seed, i) alone. Shuffling, augmentation and the number of workers
have no other state, so a run resumed at iteration i continues bit for bit.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from accelerated import transform
from accelerated.data import own_function
from accelerated.data.augment import augment, growth
from accelerated.data.dataset import Dataset
from accelerated.data.own_function import Function
from accelerated.data.padding import Shapes
from accelerated.data.workers import PATIENCE, Board, follow_parent, share, watched
from accelerated.structures import RawBatch
from reference.config import Config, override


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
    shapes: Shapes | None = None,
    part: tuple[int, int] = (0, 1),
    patience: float = PATIENCE,
    function: Function | None = None,
    masks: bool = True,
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
    function             augments as well, in place of `config.augment.function`: called with an
                         image [H, W, 3] uint8, its Target and a numpy.random.Generator, it returns
                         (image, Target)
    masks                False: leave the masks of objects out, which detection does not need

    Outlines are in the batch if the mask head's targets are drawn from them; then masks are left
    out, unless an object of the data set has no outline, or augmentation may hide a part of it.

    Raises ValueError if there is nothing to train on, or no such function. While iterating, raises
    RuntimeError naming the image and file that cannot be prepared, or at which a worker was killed
    or hangs. However the iteration ends, no worker is left.
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
    if training:
        function = own_function.prepared(
            config.augment, function, config.num_classes, shapes is not None
        )
    prepared: Any = _Prepared(dataset, config, seed, shapes, Board(workers), function, masks)
    batches = torch.utils.data.DataLoader(
        prepared,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=follow_parent,
    )
    return Loader(batches, order, patience)


def versions(
    dataset: Dataset, config: Config, index: int, count: int, seed: int = 0
) -> Generator[RawBatch, None, None]:
    """Yield batches of one image with its masks, `count` times as training would augment it.

    Raises RuntimeError naming the image and file that cannot be prepared.
    """
    # Without outlines, as the masks are wanted.
    config = override(config, "mask_head.target=binary")
    function = own_function.prepared(config.augment, None, config.num_classes, False)
    prepared = _Prepared(dataset, config, seed, None, Board(0), function, True)
    for number in range(count):
        batch = prepared.batch(number, index, [index])
        if isinstance(batch, _Failure):
            raise RuntimeError(batch.message)
        yield batch


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
    config: Config
    seed: int
    shapes: Shapes | None
    board: Board
    function: Function | None
    masks: bool

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
            points = int(self.dataset.max_points * growth(self.config.augment)[1])
        try:
            batch = transform.collate_pixels(
                prepared,
                self.config.transform,
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
        training, config = iteration is not None, self.config
        image, target = self.sample(index, training)
        size, min_size, hidden = image.shape[:2], None, False
        if training:
            rng = np.random.default_rng([self.seed, 2, iteration, slot])
            other = partial(self.other, index)
            image, target, min_size = augment(image, target, config, rng, other, self.function)
            hidden = config.augment.copy_paste > 0 or self.function is not None
        masks = self.masks and (hidden or not (self.drawn and self.dataset.outlined))
        prepared = transform.prepare_pixels(image, target, config.transform, min_size, masks=masks)
        return *prepared, size

    def other(self, index, rng):
        """Draw an image whose objects are mixed with those of image `index`, and read it."""
        drawn = int(rng.integers(len(self.dataset)))
        self.board.write(drawn)
        try:
            sample = self.sample(drawn, True)
        except Exception as error:
            raise ValueError(f"mixed with {self.name(drawn)}: {error}") from error
        self.board.write(index)
        return sample

    def sample(self, index, training):
        """Read an image and its target, with outlines only if targets are drawn from them."""
        image, target, _ = self.dataset[index]
        if training:
            # Before augmentation, which might hide what is wrong.
            transform.check_labels(target, self.config.num_classes)
            height, width = image.shape[:2]
            transform.check_target(target, height, width, torch.float32)
        return image, target if self.drawn else replace(target, polygons=None)

    @property
    def drawn(self):
        """Whether mask targets are drawn from outlines."""
        return self.config.mask_head.target == "polygon"
