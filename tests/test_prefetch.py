"""engine.prefetch: no batch is lost, and between two lines of the log nothing blocks."""

from contextlib import contextmanager

import pytest
import torch
from support import small
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from accelerated import mask_head, mask_rcnn, shared_head, transform
from accelerated.data.loader import loader
from accelerated.engine import train
from accelerated.engine.prefetch import AHEAD, Pace, prefetched
from accelerated.engine.run import Run
from accelerated.structures import RawBatch

# Operators whose result's shape or value the host must know: on a GPU they wait for it.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero"}


class NothingWaits(TorchDispatchMode):
    """Refuses operators that wait for a GPU."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        name = operator.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        assert name not in WAITING and not boolean, f"{name} waits for the device"
        return operator(*arguments, **(keywords or {}))


class NothingIsRead(TorchFunctionMode):
    """Refuses what reads a tensor's values, or makes a tensor on the device from Python's."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = getattr(function, "__name__", "")
        assert name not in ("cpu", "item", "tolist", "numpy", "__bool__", "new_tensor"), name
        assert name != "tensor" or not (keywords or {}).get("device"), "tensor(.., device=..)"
        return function(*arguments, **(keywords or {}))


class NoCopyBlocks(TorchFunctionMode):
    """Refuses copies to a device that the host waits for; counts the others."""

    copies = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        devices = [x for x in (*arguments, *keywords.values()) if isinstance(x, torch.device | str)]
        if getattr(function, "__name__", "") == "to" and devices:
            assert keywords.get("non_blocking"), "a blocking copy"
            self.copies += 1
        return function(*arguments, **keywords)


@contextmanager
def nothing_waits():
    with NothingIsRead(), NothingWaits():
        yield


@contextmanager
def nothing_blocks():
    with nothing_waits(), NoCopyBlocks() as copies:
        yield copies


def inside(context, function):
    def wrapped(*arguments, **keywords):
        with context():
            return function(*arguments, **keywords)

    return wrapped


def run(output, **options):
    options = {"iterations": 3, "batch_size": 2, "log_every": 0, "bar": False} | options
    return train.train(small.config(), small.shapes(4), output, **options)


@pytest.mark.parametrize("amp", [False, True])
def test_between_two_lines_of_the_log_nothing_waits_and_no_copy_blocks(tmp_path, monkeypatch, amp):
    # A CPU, where reading is free, skips empty slots; here the heads run as on a GPU.
    for module in (mask_rcnn, mask_head, shared_head):
        monkeypatch.setattr(module, "on_filled", lambda head, *inputs: head(*inputs))
    monkeypatch.setattr(Run, "step", inside(nothing_waits, Run.step))
    monkeypatch.setattr(transform, "finish", inside(nothing_blocks, transform.finish))
    monkeypatch.setattr(RawBatch, "to", inside(nothing_blocks, RawBatch.to))
    assert run(tmp_path, amp=amp).iteration == 3


def test_what_blocks_is_noticed():
    batch = next(iter(loader(small.shapes(2), small.config(), batch_size=2, training=False)))
    for blocking in (
        lambda: batch.to("cpu"),
        lambda: batch.boxes[batch.valid],
        lambda: batch.valid.nonzero(),
        lambda: float(batch.boxes.sum()),
        lambda: batch.boxes.sum().item(),
        lambda: torch.where(batch.valid),
    ):
        with pytest.raises(AssertionError), nothing_blocks():
            blocking()
    with nothing_blocks() as copies:
        batch.to("cpu", non_blocking=True)
    assert copies.copies == len(batch.tensors()) == 6


def test_every_batch_arrives_finished_and_in_order():
    config = small.config()
    source = list(loader(small.shapes(5), config, batch_size=2, training=False))
    arrived = list(prefetched(source, config.transform, torch.device("cpu")))
    assert [batch.image_ids for batch in arrived] == [[1, 2], [3, 4], [5]]
    for raw, batch in zip(source, arrived, strict=True):
        assert torch.equal(batch.images, transform.finish(raw, config.transform).images)


def test_on_a_gpu_copies_do_not_block_and_steps_wait_for_them(monkeypatch):
    """A stand-in for CUDA notes who does what on which stream."""
    events = []

    class Stream:
        def __init__(self, device):
            self.name = "side"

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        events.append(f"on {stream.name}")
        yield
        events.append(f"off {stream.name}")

    main = Stream("cuda")
    main.name = "main"
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)

    def to(batch, device, non_blocking=False):
        events.append(f"copy to {device}, non_blocking {non_blocking}")
        return batch

    monkeypatch.setattr(RawBatch, "to", to)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: events.append(stream.name)
    )
    config = small.config()
    source = loader(small.shapes(2), config, batch_size=1, training=False)
    for _ in prefetched(source, config.transform, torch.device("cuda")):
        events.append("step")
    of_a_batch = ["on side", "copy to cuda, non_blocking True", "off side", "main waits for side"]
    # images, sizes, boxes, labels, valid, masks
    assert events == 2 * [*of_a_batch, *6 * ["main"], "step"]


@contextmanager
def no_synchronisation():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
def test_the_loop_never_waits_for_the_gpu(tmp_path, monkeypatch, amp):
    # Compiles the kernels.
    run(tmp_path / "first", device="cuda", amp=amp)
    monkeypatch.setattr(Run, "step", inside(no_synchronisation, Run.step))
    monkeypatch.setattr(Run, "load", inside(no_synchronisation, Run.load))
    assert run(tmp_path / "second", device="cuda", amp=amp).iteration == 3


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches_while_it_is_busy():
    """The steps read their batches long after the next ones were copied."""
    config = small.config()
    source = [
        batch.pin_memory()
        for batch in loader(
            small.shapes(9), config, batch_size=1, seed=0, training=True, iterations=9
        )
    ]
    device, seen = torch.device("cuda"), []
    for batch in prefetched(source, config.transform, device):
        # About 10 ms.
        torch.cuda._sleep(20_000_000)
        seen.append((batch.images.sum(), batch.masks.sum(), batch.boxes.sum()))
        del batch
    for raw, sums in zip(source, seen, strict=True):
        batch = transform.finish(raw.to(device), config.transform)
        expected = (batch.images.sum(), batch.masks.sum(), batch.boxes.sum())
        assert all(torch.equal(a, b) for a, b in zip(sums, expected, strict=True))


@pytest.mark.gpu
def test_the_host_stays_a_few_steps_ahead():
    pace, done = Pace(torch.device("cuda")), []
    for _ in range(6):
        torch.cuda._sleep(20_000_000)
        done.append(torch.cuda.current_stream().record_event())
        pace.wait()
        assert sum(not event.query() for event in done) <= AHEAD
