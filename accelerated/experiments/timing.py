"""How long a call takes, and how much memory a process."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch


def quantiles(call, device, seconds) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds of 3 to 200 calls in about `seconds`; the GPU's second-level cache is cold each time."""
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

    def once():
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    for _ in range(2):
        call()
    start, end = once()
    torch.cuda.synchronize(device)
    events = [
        once()
        for _ in range(int(np.clip(1000 * seconds / max(start.elapsed_time(end), 0.01), 3, 200)))
    ]
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _quantiles(times):
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 4) for q in (20, 50, 80)}


def in_a_process(function, *arguments):
    """`function(*arguments)` in a fresh process, which shares no memory with this one; both must be picklable."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process in MiB, now and at most so far; Linux only (NaN elsewhere)."""
    status = Path("/proc/self/status")
    lines = (
        dict(line.split(":", 1) for line in status.read_text().splitlines())
        if status.exists()
        else {}
    )
    return tuple(
        int(lines[key].split()[0]) / 1024 if key in lines else float("nan")
        for key in ("VmRSS", "VmHWM")
    )
