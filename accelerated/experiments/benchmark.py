"""The benchmark: times of operators, a training step and inference, by backend, and torchvision's.

Every result is first compared with that of the float64 `torch` backend; a wrong one is reported and
not measured. Each row is a line of JSON: date, commit, device, versions, operator, backend, shape,
dtype, layout, error, p20/p50/p80 in milliseconds, and peer_ratio = torchvision's p50 / ours (above
1: ours is faster). `python -m accelerated.experiments.benchmark` needs only PyTorch and NumPy.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from accelerated.experiments.benchmark_cases import (
    Case,
    can_import,
    cases,
    dtype_name,
)
from accelerated.experiments.benchmark_numpy import numpy_and_torch
from accelerated.experiments.timing import quantiles
from accelerated.verify.equality import device_error


def run(
    device: torch.device, *, seconds: float = 0.5, only: str = "", model: bool = False
) -> Iterator[dict]:
    """Yield the rows of every case that suits the device.

    seconds   per measurement
    only      measure only operators whose name contains this text
    model     also compare whole models and training steps of NumPy and PyTorch
    """
    about = environment(device)
    backends = ["torch"]
    if device.type == "cuda" and can_import("triton"):
        backends.append("triton")
    for name, make in cases(device):
        if only in name:
            yield from (about | row for row in time_case(make(name), backends, device, seconds))
    if model:
        yield from (about | row for row in numpy_and_torch(seconds, only))


def time_case(
    case: Case, backends: Sequence[str], device: torch.device, seconds: float
) -> Iterator[dict]:
    """Yield a row for torchvision and one per backend; a wrong result has "failed", no times."""
    facts = {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": dtype_name(case.dtype),
        "layout": case.layout,
    }
    expected, peer = case.oracle(), None
    if case.peer is not None:
        peer = quantiles(case.peer, device, seconds)
        yield facts | {"backend": "torchvision"} | peer
    for backend in backends:
        call = case.ours(backend)
        error = device_error(call(), expected)
        if not error <= case.tolerance:
            problem = f"error {error:.3g} > {case.tolerance:.3g}, not measured"
            yield facts | {"backend": backend, "failed": problem}
            continue
        times = quantiles(call, device, seconds)
        ratio = round(peer["p50_ms"] / times["p50_ms"], 3) if peer else None
        yield facts | {"backend": backend, "error": error} | times | {"peer_ratio": ratio}


def environment(device: torch.device) -> dict:
    """Describe the machine, the versions and the commit, for every row."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = {
        name: getattr(importlib.import_module(name), "__version__", "")
        if can_import(name)
        else None
        for name in ("triton", "torchvision")
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        git = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MASKRCNN_COMMIT", "")


def report(
    output: Path,
    device: torch.device | str = "auto",
    seconds: float = 0.5,
    only: str = "",
    model: bool = False,
) -> int:
    """Measure everything, print a line per row and append the rows to OUTPUT/<device>.jsonl.

    seconds, only, model   as for `run`

    Returns 1 if a result was wrong, else 0.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device, failed = torch.device(device), 0
    path = Path(output) / f"{device.type}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"{'operator':27} {'backend':11} {'dtype':9} {'layout':14}"
    print(f"{header} {'p20 ms':>10} {'p50 ms':>10} {'p80 ms':>10} {'x peer':>7}  shape")
    with path.open("a") as file:
        for row in run(device, seconds=seconds, only=only, model=model):
            failed += "failed" in row
            print(_line(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(f"Results: {path}")
    if failed:
        print(f"{failed} results were wrong and not measured.")
    return 1 if failed else 0


def _line(row):
    names = f"{row['operator']:27} {row['backend']:11} {row['dtype']:9} {row['layout']:14}"
    memory = f", {row['memory_mb']} MB" if "memory_mb" in row else ""
    if "failed" in row:
        return f"{names} {row['failed']}  {row['shape']}"
    times = " ".join(f"{row[f'p{q}_ms']:10.3f}" for q in (20, 50, 80))
    return f"{names} {times} {row.get('peer_ratio') or '':>7}  {row['shape']}{memory}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with the options of `maskrcnn benchmark`, without its dependencies."""
    parser = argparse.ArgumentParser(
        prog="python -m accelerated.experiments.benchmark",
        description="Measure the operators, a training step and inference.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("benchmarks/results"), help="output folder")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto")
    add("--seconds", type=float, default=0.5, help="seconds per measurement (default: 0.5)")
    add("--only", default="", help="measure only operators whose name contains this text")
    add("--model", action="store_true", help="also compare whole models of NumPy and PyTorch")
    return report(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
