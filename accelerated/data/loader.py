"""Batches for training and evaluation, prepared in worker processes.

Training batch number i is a function of (seed, i) alone: of the shuffling, the augmentation and the number of workers
nothing else is remembered, so a run resumed at iteration i continues bit for bit.
"""

import signal
from dataclasses import dataclass

import numpy as np
import torch

from accelerated import transform
from accelerated.data.augment import augment


def loader(
    dataset,
    config,
    *,
    batch_size,
    workers=0,
    seed=0,
    training,
    start_iteration=0,
    iterations=None,
    flip_probability=0.5,
    max_objects=None,
    pad_to=None,
):
    """Iterable of `transform.Batch`.

    training: shuffled batches number `start_iteration`, .. up to `iterations` (None: without end), landscape and portrait
    images apart as far as they go, augmented. Otherwise: every image once, in order, the last batch possibly smaller.
    max_objects, pad_to: fixed shapes, see `transform.collate`.
    Raises ValueError when there is nothing to train on, RuntimeError naming image and file when one cannot be prepared.
    """
    if training and dataset.max_objects == 0:
        raise ValueError("no image has a labelled object: there is nothing to train on")
    if len(dataset) == 0:
        raise ValueError("the data set has no images")
    if training:
        order = _Shuffled(dataset.sizes, batch_size, seed, start_iteration, iterations)
    else:
        order = [
            (None, list(range(first, min(first + batch_size, len(dataset)))))
            for first in range(0, len(dataset), batch_size)
        ]
    prepared = _Prepared(dataset, config.transform, seed, flip_probability, max_objects, pad_to)
    pinned = torch.cuda.is_available()
    options = {"num_workers": workers, "pin_memory": pinned, "worker_init_fn": _ignore_interrupts}
    return _Loader(torch.utils.data.DataLoader(prepared, batch_size=None, sampler=order, **options))


def epoch(sizes, batch_size, seed, number):
    """Every image at least once: [[index, ..], ..] for epoch `number`. The number of batches does not depend on it.

    Batches are all landscape or all portrait, but for what is left over of each; the very last is filled up with
    images from the epoch's beginning.
    """
    rng = np.random.default_rng([seed, 1, number])
    order = rng.permutation(len(sizes))
    portrait = np.array([height > width for height, width in sizes])[order]
    alike = [
        group[: len(group) // batch_size * batch_size]
        for group in (order[portrait], order[~portrait])
    ]
    left = np.concatenate(
        [
            group[len(group) // batch_size * batch_size :]
            for group in (order[portrait], order[~portrait])
        ]
    )
    missing = -len(left) % batch_size
    batches = np.concatenate([*alike, left, np.resize(order, missing)]).reshape(-1, batch_size)
    return batches[rng.permutation(len(batches))].tolist()


@dataclass
class _Shuffled:
    """(iteration, indices) of one training batch after the other."""

    sizes: list
    batch_size: int
    seed: int
    start: int
    stop: int | None

    def __iter__(self):
        iteration, current, batches = self.start, None, []
        length = len(epoch(self.sizes, self.batch_size, self.seed, 0))
        while self.stop is None or iteration < self.stop:
            number, place = divmod(iteration, length)
            if number != current:
                current, batches = number, epoch(self.sizes, self.batch_size, self.seed, number)
            yield iteration, batches[place]
            iteration += 1


@dataclass
class _Failure:
    message: str


@dataclass
class _Prepared:
    """[(iteration or None, indices)] -> Batch, or _Failure: an exception from a worker would drown its message in tracebacks."""

    dataset: object
    config: object
    seed: int
    flip_probability: float
    max_objects: int | None
    pad_to: tuple | None

    def __getitem__(self, task):
        iteration, indices = task
        prepared, sizes = [], []
        for place, index in enumerate(indices):
            try:
                image, target, _ = self.dataset[index]
                sizes.append(image.shape[:2])
                min_size = None
                if iteration is not None:
                    rng = np.random.default_rng([self.seed, 2, iteration, place])
                    image, target, min_size = augment(
                        image, target, self.config, rng, self.flip_probability
                    )
                prepared.append(transform.prepare(image, target, self.config, min_size))
            except Exception as error:
                return _Failure(
                    f"image {self.dataset.image_ids[index]}, file {self.dataset.file_names[index]!r}: {error}"
                )
        ids = [self.dataset.image_ids[index] for index in indices]
        try:
            return transform.collate(
                prepared, self.config, sizes, ids, max_objects=self.max_objects, pad_to=self.pad_to
            )
        except ValueError as error:
            return _Failure(f"images {', '.join(map(str, ids))}: {error}")


def _ignore_interrupts(worker):
    """Ctrl-C reaches every process of the terminal; what it means is the main one's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Loader:
    batches: torch.utils.data.DataLoader

    def __len__(self):
        return len(self.batches.sampler)

    def __iter__(self):
        try:
            for batch in self.batches:
                if isinstance(batch, _Failure):
                    raise RuntimeError(batch.message)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            advice = "out of memory, or of shared memory in a container: try fewer --workers, or 0"
            raise RuntimeError(f"a process that prepares images was killed ({advice})") from error
