"""Measurements: ordered quantiles of the calls that were made, and the memory of one process."""

import time

import numpy as np
import torch

from accelerated.experiments import timing


def test_quantiles():
    calls = []

    def call():
        calls.append(time.sleep(0.002 * (1 + len(calls) % 2)))

    times = timing.quantiles(call, torch.device("cpu"), 0.1)
    assert len(calls) > 4, "as many as fit"
    assert 2 <= times["p20_ms"] <= times["p50_ms"] <= times["p80_ms"]
    calls.clear()
    timing.quantiles(call, torch.device("cpu"), 0.0)
    assert len(calls) == 4, "one to warm up, then three at least"


def _held_and_peak(megabytes):
    before, _ = timing.memory_mb()
    block = np.ones(megabytes << 17)
    held = timing.memory_mb()[0] - before
    del block
    now, peak = timing.memory_mb()
    return before, held, now - before, peak - before


def test_memory_of_a_fresh_process():
    # 1 GiB in this process, none of it in the other.
    mine = np.ones(1 << 27)
    before, held, left, peak = timing.in_a_process(_held_and_peak, 256)
    assert before < 1000 < timing.memory_mb()[0] and len(mine)
    assert 250 < held < 300 and left < 50 and 250 < peak < 300
