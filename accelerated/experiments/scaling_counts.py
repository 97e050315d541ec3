"""What a training step of several processes exchanges: counted, without other processes.

The step, in bfloat16, runs on fake tensors, see `compiled_step`, as one of two processes whose sums
come back as they went. The buckets of the gradients are those that DistributedDataParallel makes
after its first step: in the order in which the backward finishes the gradients, the first of 1 MiB,
the others of 25 MiB, each closed by the gradient that fills it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from unittest import mock

import torch

from accelerated import processes
from accelerated.experiments import compiled_step
from reference.config import Config

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
# Of int64, on the CPU: `padding.pad_alike`; signals, the clock and callbacks in `Run.agree`.
PADDING, SIGNALS = 6 * 8, 3 * 8


@dataclass(frozen=True)
class Exchange:
    """A sum over all processes, in a step: a name, and the bytes of each of its calls."""

    name: str
    calls: tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """Gradients that are exchanged at once.

    ready  share of the step's time that has passed when the last of them is computed
    """

    bytes: int
    ready: float


@dataclass(frozen=True)
class Counts:
    """The exchanges of one step in each process.

    buckets   of gradients, which the backward overlaps
    waits     those between GPUs that the GPU waits for
    cpu       those between CPUs that the host waits for
    backward  shares of the step's time that have passed at its begin and its end
    """

    buckets: list[Bucket]
    waits: list[Exchange]
    cpu: list[Exchange]
    backward: tuple[float, float]


def count(config: Config, images: int) -> Counts:
    """Count the exchanges of a step with `images` of 800x1344 in each process."""
    sums: dict[str, list[int]] = {}
    # (bytes, number of operators before it is ready) of every gradient, in that order.
    finished: list[tuple[int, int]] = []

    with compiled_step.listed() as recorder:

        def all_reduce(tensor):
            kind = "losses" if recorder.phase == "losses" else "counts of the losses"
            if recorder.phase != "losses" and tensor.is_floating_point():
                kind = f"synchronised batch norm, {recorder.phase}"
            sums.setdefault(kind, []).append(_bytes(tensor))

        with (
            mock.patch.object(processes, "number", lambda: 2),
            mock.patch.object(processes, "rank", lambda: 0),
            mock.patch.object(processes.distributed, "all_reduce", all_reduce),
        ):
            model, batch = compiled_step.inputs(config, images, training=True)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(
                        lambda p: finished.append((_bytes(p), len(recorder.operations)))
                    )
            recorder.phase = "forward"
            with torch.autocast("cpu", torch.bfloat16):
                losses = list(model.batch_losses(batch).values())
            loss = reduce(torch.add, losses)
            begin, recorder.phase = len(recorder.operations), "backward"
            loss.backward()
            end, recorder.phase = len(recorder.operations), "losses"
            processes.mean(torch.stack([*losses, loss]).detach())
    passed = [0.0]
    for operation in recorder.operations:
        passed.append(passed[-1] + operation.seconds)
    shares = [seconds / passed[-1] for seconds in passed]
    return Counts(
        buckets=buckets((size, shares[operators]) for size, operators in finished),
        waits=[Exchange(name, tuple(calls)) for name, calls in sums.items()],
        cpu=[Exchange("sides of the batch", (PADDING,)), Exchange("signals", (SIGNALS,))],
        backward=(shares[begin], shares[end]),
    )


def buckets(gradients: Iterable[tuple[int, float]]) -> list[Bucket]:
    """Gather gradients (bytes, ready), in the order of the backward, into buckets."""
    made, size, ready = [], 0, 0.0
    for added, ready in gradients:
        size += added
        if size >= (BUCKET if made else FIRST_BUCKET):
            made.append(Bucket(size, ready))
            size = 0
    return [*made, Bucket(size, ready)] if size else made


def _bytes(tensor):
    return tensor.numel() * tensor.element_size()
