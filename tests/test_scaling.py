"""experiments.scaling: what is counted is what two processes exchange, and times follow."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from support import several_processes, small
from torch import distributed

from accelerated.data.coco import CocoDataset
from accelerated.engine import group
from accelerated.engine.train import train
from accelerated.experiments import scaling, scaling_counts
from accelerated.experiments.scaling import INFINIBAND, NVLINK, Cluster, Link
from accelerated.experiments.scaling_counts import Bucket, Counts, Exchange
from reference.config import override

ROOT = Path(__file__).parents[1]
# The buckets are made again after the first, and told after the second.
STEPS = 3
NETWORK = Link("network", 1e9, INFINIBAND)


def configuration():
    """A small model with synchronised norms, and a layer that is wide enough for two buckets."""
    return override(small.config(), "backbone.norm=sync_batch", "box_head.channels=2048")


def work(rank, folder):
    """Return the bytes of every sum of a training, and those of the gradients' buckets."""
    sums, models = [], []
    all_reduce, parallel = distributed.all_reduce, group.parallel

    def counted(tensor, *arguments, **keywords):
        sums.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments, **keywords)

    def kept(model):
        models.append(parallel(model))
        return models[-1]

    with (
        mock.patch.object(distributed, "all_reduce", counted),
        mock.patch.object(group, "parallel", kept),
    ):
        options = {"iterations": STEPS, "batch_size": 2, "amp": True, "bar": False}
        train(configuration(), small.shapes(4), folder, **options)
    data = models[0]._get_ddp_logging_data()
    sizes = [int(size) for size in data["rebuilt_bucket_sizes"].split(",")]
    return sums, sizes, data["bucket_cap_bytes"]


def test_two_processes_exchange_what_is_counted(tmp_path):
    found = several_processes.run(work, tmp_path / "processes", str(tmp_path / "run"))
    counts = scaling_counts.count(configuration(), images=1)
    names = {sums.name for sums in counts.waits}
    assert {"losses", "synchronised batch norm, backward"} < names and len(counts.buckets) == 2
    calls = [size for sums in (*counts.waits, *counts.cpu) for size in sums.calls]
    for sums, buckets, cap in found:
        assert Counter(sums) == Counter(calls * STEPS)
        assert buckets == [bucket.bytes for bucket in counts.buckets]
        assert cap == scaling_counts.BUCKET


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.?\d*", text.replace(",", ""))]


def test_the_document_holds_what_is_printed(capsys):
    """Up to the order in which a version of PyTorch calls operators, which moves times slightly."""
    assert scaling.main([]) == 0
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "distributed.md").read_text()
    begin, end = "<!-- scaling: printed by the module -->\n", "\n<!-- end of scaling -->"
    held = page.partition(begin)[2].partition(end)[0]
    shape = re.compile(r"\d[\d,.]*")
    assert shape.sub("0", held) == shape.sub("0", printed)
    assert numbers(held) == pytest.approx(numbers(printed), rel=0.03, abs=0.11)


def test_the_measured_steps_are_rows_of_the_benchmark():
    rows = {}
    for line in (ROOT / "benchmarks" / "results" / "cuda.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["operator"] == "training_step" and row["commit"] == "6f4290ca74cb":
            key = row["shape"], row["dtype"], row["backend"], row.get("variant")
            rows[key] = row["p50_ms"] / 1e3
    for images, seconds in scaling.GPU.items():
        key = f"R50-FPN {images}x800x1344", "bfloat16", "triton", "graph"
        assert seconds == rows[key]
    assert rows["R50-FPN 2x800x1344", "bfloat16", "triton", None] == scaling.HOST


def test_a_large_sum_takes_its_bytes_and_a_small_one_its_messages():
    assert scaling.all_reduce(1e9, Cluster(1, 1, NVLINK, NVLINK)) == 0
    eight = Cluster(8, 1, NETWORK, NETWORK)
    ideal = 2 * 7 / 8 * 1e9 / (scaling.REACHED * NETWORK.rate)
    assert ideal < scaling.all_reduce(1e9, eight) < 1.001 * ideal
    # A tree of eight machines is three deep, up and down; in each machine it is a chain.
    for local in (1, 8):
        messages = 6 * INFINIBAND[0] + 2 * (local - 1) * NVLINK.hop[0]
        found = scaling.all_reduce(8, Cluster(8, local, NVLINK, NETWORK))
        assert found == pytest.approx(6.8e-6 + messages, rel=1e-2)
    # Inside of a machine a ring: 14 messages.
    inside = scaling.all_reduce(8, Cluster(1, 8, NVLINK, NVLINK))
    assert inside == pytest.approx(6.6e-6 + 14 * NVLINK.hop[0], rel=1e-2)
    # A ring over two machines of two: of its six messages two cross.
    four = scaling.all_reduce(1e5, Cluster(2, 2, NVLINK, NETWORK))
    messages = 4 * NVLINK.hop[1] + 2 * INFINIBAND[1]
    assert four == pytest.approx(8.4e-6 + messages + 1.5e5 / (scaling.REACHED * NETWORK.rate))
    # The slower of both links decides, and more machines never make it faster.
    times = [scaling.all_reduce(1e8, Cluster(n, 8, NVLINK, NETWORK)) for n in (1, 2, 8, 64)]
    assert times == sorted(times) and times[1] > 10 * times[0]


def test_what_the_backward_overlaps_is_hidden():
    eight, gpu = Cluster(8, 1, NETWORK, NETWORK), 1.0
    second = scaling.all_reduce(1e8, eight)
    copies = 8e8 / scaling.COPY_RATE

    def times(*ready, waits=(), cpu=()):
        return scaling.step_times(
            Counts([Bucket(int(1e8), at) for at in ready], list(waits), list(cpu), (0.5, 1.0)),
            gpu,
            eight,
        )

    # Both at the end of the backward, one of them early, both early.
    for ready, exposed in (((1.0, 1.0), 2), ((0.5, 1.0), 1), ((0.1, 0.2), 0)):
        found = times(*ready)
        assert found.exposed == pytest.approx(exposed * second)
        assert found.gradients == pytest.approx(2 * second)
        assert found.step == pytest.approx(gpu + exposed * second + copies)
        assert found.efficiency == pytest.approx(gpu / found.step)
    # The second waits for the first.
    assert times(0.95, 0.95).exposed == pytest.approx(2 * second - 0.05)
    waiting = times(0.1, 0.2, waits=[Exchange("counts", (8, 8))]).step
    assert waiting - times(0.1, 0.2).step == pytest.approx(2 * scaling.all_reduce(8, eight))
    # The host's messages matter once they outlast the GPU.
    cpu = Exchange("sides", (48,) * 10_000)
    expected = scaling.HOST + 10_000 * 14 * scaling.CPU_HOP
    assert times(0.1, 0.2, cpu=[cpu]).step == pytest.approx(expected)


def test_buckets_are_those_of_pytorch(rng):
    first = distributed._DEFAULT_FIRST_BUCKET_BYTES  # pyright: ignore
    for _ in range(20):
        sizes = (4 * (10 ** rng.uniform(4, 6.6, 60)).astype(int)).tolist()
        tensors = [torch.empty(size // 4, device="meta") for size in sizes]
        groups, _ = distributed._compute_bucket_assignment_by_size(  # pyright: ignore
            tensors, [first, scaling_counts.BUCKET], [False] * len(sizes)
        )
        made = scaling_counts.buckets(zip(sizes, range(len(sizes)), strict=True))
        expected = [Bucket(sum(sizes[i] for i in group), group[-1]) for group in groups]
        assert made == expected and len(made) > 2


def test_the_loader_is_measured(tmp_path):
    annotations, images = small.shapes(4).write_coco(tmp_path)
    found = scaling.loading(CocoDataset(annotations, images), small.config())
    files = [path.stat().st_size for path in images.iterdir()]
    assert found.bytes == sum(files) / len(files) and 0 < found.seconds < 10
    shown = scaling.deliveries(replace(found, seconds=0.01))
    assert f"{16 / scaling.GPU[16] * 0.01:.1f}" in shown


def test_what_does_not_exist_is_one_line(capsys):
    for words in (["--preset", "nothing"], ["--data", "absent.json"]):
        assert scaling.main(words) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("scaling: ") and error.count("\n") == 1
