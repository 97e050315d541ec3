"""Gradients of a large batch, worked on in parts, so that only a part's activations need memory.

Losses are divided by how many anchors, RoIs and objects the whole batch has, see
`processes.of_batch`. Which RoIs the later parts sample is not known before their proposals are. So
all parts but the last first run up to there, without gradients, and are counted. The last part runs
with gradients at once, knowing these counts, and the others follow. The result is that of the whole
batch but for the order of additions.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from accelerated import processes
from accelerated.engine.capture import Draws
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch
from reference.config import Config, flat

Losses = dict[str, torch.Tensor]
Parts = list[tuple[Batch, Draws]]


def check(config: Config, parts: int, batch_size: int) -> None:
    """Raise ValueError where a batch cannot be worked on in `parts` parts."""
    if parts == 1:
        return
    count = processes.number()
    if parts < 1 or batch_size % (parts * count):
        several = f" by each of {count} processes" if count > 1 else ""
        raise ValueError(
            f"--batch-size {batch_size} cannot be worked on in --accumulate {parts} equal parts"
            f"{several}: choose a multiple of {max(parts, 1) * count}"
        )
    for path, value in flat(config).items():
        if path.endswith(".norm") and value in ("batch", "sync_batch"):
            raise ValueError(
                f"--accumulate: {path} = {value} averages over all images of a batch, of which only"
                f" a part is at hand: add --set {path}=group or --set {path}=frozen"
            )


def split(batch: Batch, draws: Draws, parts: int) -> Parts:
    """Cut a batch and the priorities drawn for it into equal parts, padded as the whole."""
    size = len(batch.image_ids) // parts
    rows = [slice(start, start + size) for start in range(0, parts * size, size)]
    lists = ("original_sizes", "image_ids")
    return [
        (
            replace(
                batch,
                **{name: x[part] for name, x in batch.tensors().items()},
                **{name: getattr(batch, name)[part] for name in lists},
            ),
            {"priorities": {name: x[part] for name, x in draws["priorities"].items()}},
        )
        for part in rows
    ]


def backward(
    model: MaskRCNN,
    parallel: DistributedDataParallel | None,
    losses_of: Callable[[Batch, Draws], Losses],
    precision: Callable[[], Any],
    parts: Parts,
) -> Losses:
    """Add the gradients of a batch to those of the parameters; return its losses.

    parallel   the model as `group.parallel` wraps it, of several processes
    losses_of  computes the losses of a part, with gradients
    precision  makes the context in which the model computes, see torch.autocast
    """
    *others, last = parts
    total = Counter()
    counts = []
    for part in others:
        with torch.no_grad(), precision():
            counts.append(count(model, *part))
        total.update(counts[-1])
    sums: Losses = {}
    # The last part's own counts are the first to be added to the others'.
    for position, (part, own) in enumerate(zip([last, *others], [{}, *counts], strict=True)):
        is_final = position == len(others)
        # Gradients are exchanged once, with those of the final part.
        apart = parallel.no_sync() if parallel is not None and not is_final else nullcontext()
        with apart, _beside({name: total[name] - own.get(name, 0) for name in total}) as found:
            losses = losses_of(*part)
            reduce(torch.add, losses.values()).backward()
        if position == 0:
            total.update(found)
        sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
    return sums


def count(model: MaskRCNN, batch: Batch, draws: Draws) -> dict[str, Any]:
    """Count the anchors, RoIs and objects that the losses of a part are about, and its images."""
    with processes.apart(), _beside({}) as found:
        *_, samples = model.first_stage(batch, **draws)
        processes.count(samples.labels >= 0, "rois")
        processes.count(samples.labels > 0, "objects")
    return found


@contextmanager
def _beside(others: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Add the counts of the other parts to all counts; yield those of this part, once it ran."""
    found = {}

    def add(what: str, number: Any) -> Any:
        found[what] = number
        return number + others.get(what, 0)

    with processes.counting(add):
        yield found
