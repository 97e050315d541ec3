"""The processes that torchrun starts: they join, agree on values, and hand over results.

A process that is alone agrees with itself: nothing here waits, and nothing changes. What one of
them misses, because another ended or hangs, becomes a LostError. Tensors are summed in `processes`.
"""

import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from accelerated.processes import is_first, number, rank

# Seconds that the others have to tell that they, too, miss a process.
GRACE = 5.0


@dataclass
class _Joined:
    """What this process uses to talk to the others, besides gradients."""

    # For small values on the CPU, so that nothing waits for a GPU.
    group: Any
    store: Any
    patience: float


_joined: _Joined | None = None


class LostError(RuntimeError):
    """A process of the run ended, or does not answer."""


def environment() -> dict[str, int]:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets; without it they are 0, 1 and 0.

    Raises ValueError if they are incomplete or no numbers.
    """
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    texts = {name: os.environ[name] for name in names if os.environ.get(name)}
    try:
        numbers = names | {name: int(text) for name, text in texts.items()}
    except ValueError:
        numbers = names | {"RANK": -1}
    needed = (*names, "MASTER_ADDR", "MASTER_PORT") if numbers["WORLD_SIZE"] > 1 else ()
    complete = all(os.environ.get(name) for name in needed)
    if not complete or not 0 <= numbers["RANK"] < numbers["WORLD_SIZE"]:
        told = ", ".join(f"{name}={text}" for name, text in texts.items())
        raise ValueError(f"{told} do not name one of several processes: start them with torchrun")
    return numbers


@contextmanager
def joined(device: torch.device, patience: float) -> Iterator[None]:
    """Join the other processes that torchrun started, if there are any, for as long as this lasts.

    device    of this process; gradients are exchanged by NCCL between GPUs, by gloo between CPUs
    patience  seconds that a process may keep the others waiting before all stop

    Raises LostError if another process ends or keeps this one waiting for longer, and ValueError
    for an environment that is not torchrun's.
    """
    global _joined
    numbers = environment()
    if numbers["WORLD_SIZE"] == 1:
        yield
        return
    wait = timedelta(seconds=patience)
    store, rank_, count = next(iter(rendezvous("env://", timeout=wait)))
    store = _of_this_start(store, rank_, count, patience)
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if is_gpu else "gloo"
    # The exchange on the CPU comes first in a step and names the process that is missing.
    timeout = 2 * wait if is_gpu else wait
    distributed.init_process_group(
        backend, store=store, rank=rank_, world_size=count, timeout=timeout
    )
    _joined = _Joined(distributed.new_group(backend="gloo", timeout=wait), store, patience)
    try:
        at_step(None)
        with naming_missing():
            yield
        barrier()
    except LostError:
        # Leaving in order would wait for the missing process.
        raise
    except BaseException:
        distributed.destroy_process_group()
        raise
    else:
        distributed.destroy_process_group()
    finally:
        _joined = None


def _of_this_start(store, own_rank, count, patience):
    """Return a part of the store that no earlier start of the processes has written to.

    torchrun keeps its store when it starts processes again, and some would read the addresses of
    dead ones there. So each tells a new word, and process 0 answers it with the name of the part.
    """
    word = uuid4().hex
    store.set(f"start/{own_rank}", word)
    try:
        name = word if own_rank == 0 else store.get(f"name for {word}").decode()
    except distributed.DistStoreError:
        raise LostError(f"of {count} processes, 0 did not start in {patience:g} s") from None
    part = PrefixStore(name, store)
    part.set(f"here/{own_rank}", "")
    deadline = time.monotonic() + patience
    # Process 0 may first have read, and answered, the word of a dead one.
    while own_rank == 0 and (missing := _without(part, "here", count)):
        for other in missing:
            if store.check([f"start/{other}"]):
                store.set(f"name for {store.get(f'start/{other}').decode()}", name)
        if time.monotonic() > deadline:
            named = ", ".join(map(str, missing))
            raise LostError(f"of {count} processes, {named} did not start in {patience:g} s")
        time.sleep(0.02)
    return part


def _without(store, mark, count):
    """List the processes that have not left a mark."""
    return [k for k in range(count) if not store.check([f"{mark}/{k}"])]


def parallel(model: nn.Module) -> DistributedDataParallel:
    """Wrap a model so that its gradients are averages over all processes.

    They are exchanged in buckets while the backward goes on.
    """
    # Of a 1x1 convolution's weights, whose strides over its single pixel mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    with warnings.catch_warnings():
        # PyTorch 2.13 wants the argument to be called forward_sync_buffers, unknown to 2.12.
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are constants, or statistics that change alike in all processes.
        return DistributedDataParallel(model, broadcast_buffers=False)


def at_step(step: int | None) -> None:
    """Leave word of the step that this process is at, for others that miss it; None: before."""
    if _joined is not None:
        where = "before the first step" if step is None else f"at step {step}"
        _joined.store.set(
            f"at/{rank()}", f"(pid {os.getpid()} on {socket.gethostname()}), last {where}"
        )


def _exchange():
    """Return the group for values on the CPU; None is the one that a caller set up itself."""
    return None if _joined is None else _joined.group


def maximum(*values: int) -> list[int]:
    """Return, of each value, the largest that a process gives."""
    if number() == 1:
        return list(values)
    row = torch.tensor(values, dtype=torch.int64)
    with naming_missing():
        distributed.all_reduce(row, distributed.ReduceOp.MAX, group=_exchange())
    return row.tolist()


def barrier() -> None:
    """Wait for all processes."""
    maximum(0)


def share(value: Any) -> Any:
    """Return, in every process, the value that process 0 gives."""
    if number() == 1:
        return value
    box = [value]
    with naming_missing():
        distributed.broadcast_object_list(box, src=0, group=_exchange())
    return box[0]


def collect(value: Any) -> list | None:
    """Return the values of all processes, in process 0; None in the others."""
    if number() == 1:
        return [value]
    values: list | None = [None] * number() if is_first() else None
    with naming_missing():
        distributed.gather_object(value, values, dst=0, group=_exchange())
    return values


def require_same(**values: Any) -> None:
    """Raise ValueError, in every process, if a value of one is not that of process 0."""
    differences = []
    for name, value in values.items():
        first = share(value)
        if value != first:
            differences.append(f"{name} is {value!r}, in process 0 {first!r}")
    rows = share(collect(differences))
    for index, found in enumerate(rows):
        if found:
            raise ValueError(f"process {index}: {found[0]}; start all with the same data and files")


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one process after the other do something, such as write files that the next ones read."""
    for _ in range(rank()):
        barrier()
    try:
        yield
    finally:
        for _ in range(rank(), number()):
            barrier()


def alternate(parts: Sequence[Sequence]) -> list:
    """Merge lists into the order of the items: of n processes, process k has every n-th from k."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


@contextmanager
def naming_missing() -> Iterator[None]:
    """Turn the error of an exchange that failed into LostError, which names the process."""
    try:
        yield
    except LostError:
        raise
    except RuntimeError as error:
        if _joined is None or not _is_of_exchange(error):
            raise
        raise LostError(_explain(str(error), _joined)) from error


def _is_of_exchange(error):
    kinds = distributed.DistError, distributed.DistBackendError
    texts = ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe")
    return isinstance(error, kinds) or any(text in str(error) for text in texts)


def _explain(text, joined):
    """Say which processes are missing: those that do not tell that they miss another one."""
    timed_out = "timed out" in text.lower() or "timeout" in text.lower()
    how = f"did not answer for {joined.patience:g} s" if timed_out else "ended"
    end = "all stop; a training goes on from its last checkpoint with --resume"
    try:
        joined.store.set(f"misses/{rank()}", "1")
        deadline = time.monotonic() + GRACE
        while (silent := _without(joined.store, "misses", number())) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.05)
        places = [joined.store.get(f"at/{other}").decode() for other in silent]
    except (RuntimeError, distributed.DistError):
        return f"the process that holds the processes together {how}; {end}"
    if not silent:
        return f"the connection between the processes failed ({text[:200]}); {end}"
    named = ", ".join(f"{k} {place}" for k, place in zip(silent, places, strict=True))
    return f"of {number()} processes, {named}, {how}; {end}"
