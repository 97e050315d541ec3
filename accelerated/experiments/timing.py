"""Measurement of a call's time and a process's memory."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch


def quantiles(call: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, float]:
    """Time 3 to 200 calls in about `seconds`; return their p20, p50 and p80 in milliseconds.

    On a GPU the second-level cache is cold in each call.
    """
    if device.type == "cuda":
        return _quantiles(_cuda_times(call, device, seconds))
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return _quantiles(times)


def _cuda_times(call, device, seconds):
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


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 4) for q in (20, 50, 80)}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` in a fresh process; both must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mb() -> tuple[float, float]:
    """Return this process's resident memory in MiB, now and at its peak; NaN except on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan"), float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
