"""Measurement of a call: its time, and the memory that it adds; of a device: its rates.

A GPU runs behind the host, so there are three ways to time a call on it, and a row names its own:

    events    between two events around the call: with the gaps in which the GPU waits for the host
    graph     the same around a CUDA graph of the call: the work of the GPU without such gaps
    profiler  the sum of the kernels' times, of a call that waits for the GPU and has no graph

On a CPU it is "clock". On a GPU the second-level cache is cold in each call.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], Any]


def quantiles(
    call: Call, device: torch.device, seconds: float, *, with_host: bool = True
) -> dict[str, Any]:
    """Time 3 to 200 calls in about `seconds`; return their p20, p50 and p80 in milliseconds.

    with_host  count also what the GPU waits for the host ("events"); otherwise "graph", and where
               the call waits for the GPU, "profiler", which takes at most 10 calls

    Also returns "timing" and, on a GPU, "memory_mb": MiB at the call's peak above those before it.
    """
    if device.type == "cpu":
        call()
        return _quantiles(_until(seconds, 200, _clocked(call))) | {"timing": "clock"}
    memory = _added_memory(call, device)
    if with_host:
        times, timing = _event_times(call, device, seconds), "events"
    elif waits_for_the_gpu(call):
        times, timing = _kernel_times(call, device, seconds), "profiler"
        if not all(times):
            # Some machines do not permit profiling.
            times, timing = _event_times(call, device, seconds), "events"
    else:
        times, timing = _event_times(captured(call), device, seconds), "graph"
    return _quantiles(times) | {"timing": timing, "memory_mb": memory}


def captured(call: Call) -> Call:
    """Capture a call in a CUDA graph; return a function that replays it and returns its result.

    The current stream must not be the default one; see `own_stream`.
    Raises RuntimeError if the call waits for the GPU.
    """
    # Kernels are loaded before, and a capture that fails half-way leaves PyTorch's allocator in
    # disorder.
    call()
    if waits_for_the_gpu(call):
        raise RuntimeError("the call waits for the GPU: it has no CUDA graph")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = call()

    def replay():
        graph.replay()
        return result

    return replay


def waits_for_the_gpu(call: Call) -> bool:
    """Tell whether a call synchronises the GPU, or fails otherwise when it is told not to."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        call()
        return False
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, which a CUDA graph needs: backward passes run where forward ran.

    Does nothing on a CPU.
    """
    if device.type == "cpu":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def rates(device: torch.device, seconds: float) -> dict[str, float]:
    """Measure bytes/s of a copy, read and written, and FLOP/s of a product of matrices.

    The matrices are bfloat16, on a CPU float32.
    """
    gpu = device.type == "cuda"
    size, side = (2**30, 8192) if gpu else (2**27, 1024)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.ones(side, side, dtype=torch.bfloat16 if gpu else torch.float32, device=device)
    product = torch.empty_like(matrix)
    copy, matmul = (
        quantiles(call, device, seconds, with_host=False)["p50_ms"] / 1000
        for call in (
            lambda: target.copy_(source),
            lambda: torch.mm(matrix, matrix, out=product),
        )
    )
    return {"copy": 2 * size / copy, "matmul": 2 * side**3 / matmul}


def _clocked(call):
    """Return a function that calls and returns the milliseconds that took."""

    def timed_call():
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    return timed_call


def _event_times(call, device, seconds):
    cache = torch.empty(2**28, dtype=torch.int8, device=device)

    def timed_call():
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    for _ in range(2):
        call()
    start, end = timed_call()
    torch.cuda.synchronize(device)
    count = int(np.clip(1000 * seconds / max(start.elapsed_time(end), 0.01), 3, 200))
    events = [timed_call() for _ in range(count)]
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _kernel_times(call, device, seconds):
    """Return the sums of the times of the kernels, copies and fills of single calls."""
    cache = torch.empty(2**28, dtype=torch.int8, device=device)

    def timed_call():
        cache.zero_()
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize(device)
        return sum(
            event.time_range.elapsed_us() / 1000
            for event in profiler.events() or ()
            if event.device_type.name == "CUDA"
        )

    # The profiler starts slowly.
    timed_call()
    return _until(seconds, 10, timed_call)


def _until(seconds, most, timed_call):
    """Collect the results of 3 to `most` calls in about `seconds`."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < most):
        times.append(timed_call())
    return times


def _added_memory(call, device):
    for _ in range(2):
        call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20)


def _quantiles(times: Sequence[float]) -> dict[str, Any]:
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 4) for q in (20, 50, 80)}


def in_a_process(function: Callable[..., Any], *arguments: Any, limit: float | None = None) -> Any:
    """Call `function(*arguments)` in a fresh process; both must be picklable.

    limit  seconds after which the process is ended; None: no limit

    Raises RuntimeError with the function's error, and TimeoutError after the limit.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            raise TimeoutError(f"not finished after {limit:g} s")
        error, result = receiver.recv()
    except EOFError:
        raise RuntimeError("the process ended without a result") from None
    finally:
        process.kill()
        process.join()
    if error:
        raise RuntimeError(error)
    return result


def _answer(sender, function, arguments):
    try:
        sender.send((None, function(*arguments)))
    except Exception as error:
        sender.send((f"{type(error).__name__}: {error}", None))


def memory_mb() -> tuple[float, float]:
    """Return this process's resident memory in MiB, now and at its peak; NaN except on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan"), float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
