"""How training with several GPUs should scale: computed, not measured.

1. What a step exchanges, counted (`scaling_counts`).
2. The time of a step on 8 and 64 GPUs by their network, and what is hidden behind the backward.
3. Where the efficiency falls below 90 % and 50 %.
4. What the loader must deliver.

`python -m accelerated.experiments.scaling` prints it in Markdown; docs/distributed.md holds it. The
time of a sum is the least that NCCL's own estimate gives over rings and trees and two protocols.
Not counted: waiting for the slowest GPU, and what NCCL takes from the backward beside it.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerated.data.coco import CocoDataset
from accelerated.data.loader import loader
from accelerated.experiments.compiled_step import PRESET
from accelerated.experiments.compiled_visits import COPY_RATE
from accelerated.experiments.scaling_counts import Counts, count
from reference.config import Config, override, preset

# Measured on an H200, rows "training_step" of commit 6f4290ca74cb in benchmarks/results/cuda.jsonl,
# bfloat16: seconds of the GPU by its images, of a captured step, and the seconds in which the host
# launches a step that is not captured.
GPU = {2: 14.3818e-3, 16: 72.8485e-3}
HOST = 32.0154e-3
# The share of a link's rate that NCCL reaches.
REACHED = 0.8
# A message between two CPUs, of which gloo's ring needs 2 (n - 1) for a sum; assumed.
CPU_HOP = 30e-6
# GPUs in a machine, machines, and the most GPUs that are tried.
LOCAL, MACHINES, MOST = 8, 8, 8192


@dataclass(frozen=True)
class Link:
    """A connection between GPUs.

    rate  bytes/s in one direction; between machines, of a whole machine
    hop   seconds of a message, with NCCL's protocols LL and Simple
    """

    name: str
    rate: float
    hop: tuple[float, float]


# Latencies of NCCL's tuning.cc; it knows no slower one for Ethernet, where 50 us are assumed.
NVLINK = Link("NVLink, 450 GB/s", 450e9, (0.6e-6, 4e-6))
PCIE = Link("PCIe 5.0 x16, 64 GB/s", 64e9, (1e-6, 5.7e-6))
INFINIBAND, ETHERNET = (5e-6, 14e-6), (50e-6, 50e-6)
OUTSIDE = (
    Link("8 x 400 Gb/s InfiniBand", 400e9, INFINIBAND),
    Link("400 Gb/s InfiniBand", 50e9, INFINIBAND),
    Link("100 Gb/s InfiniBand", 12.5e9, INFINIBAND),
    Link("25 Gb/s Ethernet", 3.125e9, ETHERNET),
    Link("10 Gb/s Ethernet", 1.25e9, ETHERNET),
)
# Seconds of a sum's start, and the share of the rate, with LL and Simple.
RING = (6.6e-6, 0.5), (8.4e-6, 1.0)
TREE = (6.8e-6, 1 / 3.8), (8.4e-6, 0.92)


@dataclass(frozen=True)
class Cluster:
    """Machines with GPUs, which are linked inside a machine, and between machines."""

    machines: int
    local: int
    inside: Link
    outside: Link

    @property
    def size(self) -> int:
        """The number of GPUs."""
        return self.machines * self.local


@dataclass(frozen=True)
class Times:
    """The times of a step, in seconds, and its efficiency.

    gradients   of the exchange of gradients
    exposed     of that part of it which the backward does not hide
    step        of the whole step
    efficiency  the time of one GPU alone over that of the step, 0..1
    """

    gradients: float
    exposed: float
    step: float
    efficiency: float


@dataclass(frozen=True)
class Loading:
    """What an image costs before it reaches the GPU: bytes of its file, seconds of a processor."""

    bytes: float
    seconds: float


# 80 images of COCO, prepared at 800 pixels with masks on one thread of a Xeon: see `loading`.
COCO = Loading(154e3, 24.7e-3)


def all_reduce(size: float, cluster: Cluster) -> float:
    """Return the seconds of a sum of `size` bytes over all GPUs.

    A ring enters and leaves each machine once, over all of its cards; a tree is a chain inside of
    a machine and binary between them.
    """
    if cluster.size == 1:
        return 0.0
    hops, crossing = 2 * (cluster.size - 1), 2 * (cluster.machines - 1)
    depth = 2 * math.ceil(math.log2(cluster.machines))
    rates = [cluster.inside.rate] * (cluster.local > 1)
    rate = REACHED * min(rates + [cluster.outside.rate] * (cluster.machines > 1))
    seconds = []
    for inside, outside, ring, tree in zip(
        cluster.inside.hop, cluster.outside.hop, RING, TREE, strict=True
    ):
        volume = 2 * (cluster.size - 1) / cluster.size * size
        latency = (hops - crossing) * inside + crossing * outside
        seconds.append(ring[0] + latency + volume / (rate * ring[1]))
        latency = 2 * (cluster.local - 1) * inside + depth * outside
        seconds.append(tree[0] + latency + 2 * size / (rate * tree[1]))
    return min(seconds)


def step_times(counts: Counts, gpu: float, cluster: Cluster) -> Times:
    """Compute the times of a step that one GPU alone computes in `gpu` seconds."""
    free = total = 0.0
    # One exchange at a time, each once its gradients are ready.
    for bucket in counts.buckets:
        seconds = all_reduce(bucket.bytes, cluster)
        free, total = max(free, bucket.ready * gpu) + seconds, total + seconds
    exposed = max(0.0, free - counts.backward[1] * gpu)
    # Into the buckets and back, each read and written.
    copies = 4 * sum(bucket.bytes for bucket in counts.buckets) / COPY_RATE
    waits = sum(all_reduce(size, cluster) for sums in counts.waits for size in sums.calls)
    messages = sum(2 * (cluster.size - 1) * len(sums.calls) for sums in counts.cpu)
    step = max(HOST + CPU_HOP * messages, gpu + exposed + waits + copies)
    return Times(total, exposed, step, max(HOST, gpu) / step)


def loading(dataset: CocoDataset, config: Config) -> Loading:
    """Measure what an image of `dataset` costs, in this process and on its threads."""
    batches = loader(
        dataset, config, batch_size=2, training=True, iterations=max(1, len(dataset) // 2)
    )
    start = time.process_time()
    images = sum(len(batch.image_ids) for batch in batches)
    seconds = (time.process_time() - start) / images
    files = dataset.files()
    return Loading(sum(path.stat().st_size for path in files) / len(files), seconds)


def report(config: Config, loaded: Loading = COCO) -> str:
    """Return all tables in Markdown."""
    counts = count(config, max(GPU))
    parts = [exchanges(counts)]
    for images, gpu in GPU.items():
        base = 1e3 * max(gpu, HOST)
        alone = f"one H200 alone takes {base:.1f} ms for a step of {PRESET}"
        parts.append(f"{images} images on each GPU; {alone}:")
        parts.append(steps(counts, gpu))
    small, large = (GPU[images] for images in sorted(GPU))
    eight = step_times(counts, small, Cluster(1, LOCAL, NVLINK, NVLINK)).step
    parts.append(
        f"The same 16 images take one GPU {1e3 * large:.1f} ms, and eight with 2 images each"
        f" {1e3 * eight:.1f} ms: {large / eight:.1f} times as fast."
    )
    parts += [limits(counts), deliveries(loaded)]
    return "\n\n".join(parts)


def exchanges(counts: Counts) -> str:
    """Show what a step exchanges."""
    *sizes, last = (f"{bucket.bytes / 1e6:.1f}" for bucket in counts.buckets)
    names = f"gradients, in buckets of {', '.join(sizes)} and {last} MB"
    beside = "between GPUs, beside the backward"
    rows = [(names, len(counts.buckets), sum(b.bytes for b in counts.buckets), beside)]
    for how, listed in (
        ("between GPUs, which wait", counts.waits),
        ("between CPUs", counts.cpu),
    ):
        rows += [(sums.name, len(sums.calls), sum(sums.calls), how) for sums in listed]
    shown = [(name, calls, f"{size:,}", how) for name, calls, size, how in rows]
    return _table(("sums over all processes in a step", "calls", "bytes", "where"), shown)


def steps(counts: Counts, gpu: float) -> str:
    """Show the times of a step by network, on 8 and 64 GPUs."""
    columns = "gradients", "not hidden", "step", "efficiency"
    head = ["", *(f"{gpus} GPUs: {column}" for gpus in (8, 64) for column in columns)]
    rows = []
    for link in (NVLINK, PCIE, *OUTSIDE):
        row = [link.name]
        for cluster in _clusters(link):
            if cluster is None:
                row += ["-"] * len(columns)
                continue
            times = step_times(counts, gpu, cluster)
            row += [f"{1e3 * x:.1f} ms" for x in (times.gradients, times.exposed, times.step)]
            row.append(f"{times.efficiency:.0%}")
        rows.append(row)
    return _table(head, rows)


def limits(counts: Counts) -> str:
    """Show from how many GPUs, and below which bandwidth, the efficiency is too low."""
    head = ["efficiency below", "64 GPUs, each machine with less than"]
    rows = []
    for images, gpu in GPU.items():
        for share in (0.9, 0.5):

            def is_low(cluster, gpu=gpu, share=share):
                return step_times(counts, gpu, cluster).efficiency < share

            cells = [_machines(is_low, link) for link in OUTSIDE]
            rows.append([f"{share:.0%}, {images} images", _bandwidth(is_low), *cells])
    return _table([*head, *(link.name for link in OUTSIDE)], rows)


def deliveries(loaded: Loading) -> str:
    """Show what the loader must deliver at full speed."""
    rows = []
    for images, gpu in GPU.items():
        rate = images / max(gpu, HOST)
        for gpus in (1, LOCAL):
            files, cores = gpus * rate * loaded.bytes / 1e6, gpus * rate * loaded.seconds
            what = f"{gpus} GPU{'s' * (gpus > 1)}, {images} images each"
            rows.append([what, f"{gpus * rate:.0f}", f"{files:.0f} MB/s", f"{cores:.1f}"])
    each = f"{loaded.bytes / 1e3:.0f} KB and {1e3 * loaded.seconds:.1f} ms each"
    return _table(("", "images/s", f"files read ({each})", "processor cores"), rows)


def _clusters(link: Link) -> tuple[Cluster | None, Cluster | None]:
    """Return eight GPUs, in one machine or in eight, and eight machines of eight GPUs."""
    if link in (NVLINK, PCIE):
        return Cluster(1, LOCAL, link, link), None
    # A machine with eight cards has eight GPUs.
    alone = None if link is OUTSIDE[0] else Cluster(MACHINES, 1, link, link)
    return alone, Cluster(MACHINES, LOCAL, NVLINK, link)


def _machines(is_low: Callable[[Cluster], bool], link: Link) -> str:
    """Name the least number of GPUs, in whole machines, with which the efficiency is too low."""
    for machines in range(1, MOST // LOCAL + 1):
        if is_low(Cluster(machines, LOCAL, NVLINK, link)):
            return f"from {machines * LOCAL} GPUs"
    return f"beyond {MOST} GPUs"


def _bandwidth(is_low: Callable[[Cluster], bool]) -> str:
    """Find the bandwidth of each of eight machines that is just enough, by bisection."""

    def at(power):
        link = replace(OUTSIDE[0], rate=10**power)
        return is_low(Cluster(MACHINES, LOCAL, NVLINK, link))

    low, high = 6.0, 12.0
    if at(high):
        return "any network"
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) else (low, middle)
    return f"{8 * 10**high / 1e9:.0f} Gb/s"


def _table(head: Sequence, rows: Iterable[Sequence]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables for a configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m accelerated.experiments.scaling",
        description="Count what several processes exchange, and compute how training scales, with"
        f" the step that was measured for {PRESET} on an H200.",
    )
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--data", type=Path, help="measure the loader on this data")
    parser.add_argument("--images", type=Path, help="its folder of images")
    given = parser.parse_args(arguments)
    try:
        config = override(preset(given.preset), *given.set)
        loaded = loading(CocoDataset(given.data, given.images), config) if given.data else COCO
    except (ValueError, OSError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    print(report(config, loaded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
