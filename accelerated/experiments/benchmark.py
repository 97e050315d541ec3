"""The benchmark: times of operators, training steps and inference, by backend, and torchvision's.

Every result is first compared with that of the float64 `torch` backend, in a large batch only the
first images'; a wrong one is reported and not measured. Where torchvision has no kernel or fails,
its row says so, and the next one follows. Each row is a line of JSON:

    date, commit, device, versions                 and of this device, measured:
    copy_tb_s, matmul_tflop_s                      10^12 bytes/s of a copy, FLOP/s of a product
    operator, backend, variant, shape, dtype, layout, error
    p20_ms, p50_ms, p80_ms, timing, memory_mb      see timing.py
    peer_ratio                                     torchvision's p50 / ours: above 1 ours is faster
    copy_share                                     of the copy's rate, each byte counted once
    images_s, matmul_share                         of a whole model; FLOP by torch's counter
    failed                                         instead of times: our result was wrong
    unmeasured                                     instead of times: such as "no kernel"

`python -m accelerated.experiments.benchmark` needs only PyTorch and NumPy.
"""

import argparse
import datetime
import importlib
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from accelerated.experiments import benchmark_boxes, benchmark_curves, timing
from accelerated.experiments.benchmark_cases import (
    ROI_OPERATORS,
    Case,
    can_import,
    dtype_name,
    pooling,
)
from accelerated.experiments.benchmark_models import whole_model
from accelerated.experiments.benchmark_numpy import numpy_and_torch

Named = tuple[str, Callable[[str], Case]]
# What is pooled from a pyramid: 2x500 RoIs to 7x7, a training batch's for the box and mask heads.
SIZES = ({}, {"images": 16, "rois": 512}, {"images": 16, "rois": 128, "size": 14})


def cases(device: torch.device) -> Iterator[Named]:
    """Yield (operator, function that makes its case), so that one case is in memory at a time.

    The first ones count most: a budget of time may leave out the last.
    """
    gpu = device.type == "cuda"
    float32, half, bfloat16 = torch.float32, torch.float16, torch.bfloat16
    layouts = ("nchw", "channels_last")

    def pool(names, dtype, layout, **sizes):
        for name in names:
            make = partial(pooling, dtype=dtype, layout=layout, device=device, **sizes)
            yield f"{name}_forward", make
            yield f"{name}_backward", make

    def model(operator, images, dtype, **settings):
        size = {"name": "torchvision_r50_fpn", "side": (800, 1344)}
        size = size if gpu else {"name": "tiny", "side": (128, 128)}
        settings |= {"images": images, "dtype": dtype, "device": device}
        return operator, partial(whole_model, **size, **settings)

    for dtype in (float32, half) if gpu else (float32,):
        for layout in layouts:
            yield from pool(["roi_align"], dtype, layout)
    if gpu:
        for dtype in (bfloat16, float32):
            for sizes in SIZES:
                yield from pool(["pyramid_roi_align"], dtype, "channels_last", **sizes)
        for size in (2, 16, 8):
            yield model("training_step", size, bfloat16, checked=size == 2)
        for size in (1, 8):
            yield model("detect", size, bfloat16, checked=size == 1)
        yield model("detect_and_paste", 1, bfloat16, checked=False)
    yield model("training_step", 2, float32)
    yield model("detect", 1 if gpu else 2, float32)
    # Among these are calls that the profiler has to time, which may slow what comes after.
    few = {} if gpu else {"images": 2}
    yield "batched_nms", partial(benchmark_boxes.suppression, device=device)
    yield "proposal_nms", partial(benchmark_boxes.proposal_suppression, device=device, **few)
    yield "matcher", partial(benchmark_boxes.matching, device=device, **few)
    few |= {} if gpu else {"rois": 32}
    yield "mask_targets", partial(benchmark_boxes.mask_targets, device=device, **few)
    yield "paste", partial(benchmark_boxes.pasting, device=device)
    if not gpu:
        for layout in layouts:
            yield from pool(ROI_OPERATORS[1:], float32, layout)
        return
    yield from pool(["roi_align"], bfloat16, "channels_last")
    for dtype in (float32, half, bfloat16):
        yield from pool(["roi_pool"], dtype, "channels_last")
    yield from pool(["roi_pool", "pyramid_roi_align"], float32, "nchw")
    for sizes in SIZES:
        yield from pool(["pyramid_roi_pool"], float32, "channels_last", **sizes)


def full_width() -> Iterator[Named]:
    """Yield cases of R50-FPN on a CPU; their float64 answers would take minutes."""
    settings = {"name": "torchvision_r50_fpn", "side": (800, 1344), "checked": False}
    for dtype in (torch.float32, torch.bfloat16):
        for operator, images in (("detect", 1), ("training_step", 2)):
            settings |= {"images": images, "dtype": dtype, "device": torch.device("cpu")}
            yield operator, partial(whole_model, **settings)


def run(
    named: Iterable[Named],
    device: torch.device,
    *,
    seconds: float = 0.5,
    compiled: bool = False,
    budget: float = float("inf"),
) -> Iterator[dict]:
    """Yield the rows of the named cases.

    seconds   per measurement
    compiled  also compile whole models, each in a process of its own
    budget    seconds after which no case is begun; the row of such a one has only "operator" and
              "skipped"
    """
    end = time.monotonic() + budget
    backends = ["torch"]
    if device.type == "cuda" and can_import("triton"):
        backends.append("triton")
    with timing.own_stream(device):
        rates = timing.rates(device, min(seconds, 0.5))
        about = environment(device)
        about["copy_tb_s"] = round(rates["copy"] / 1e12, 4)
        about["matmul_tflop_s"] = round(rates["matmul"] / 1e12, 3)
        for name, make in named:
            if time.monotonic() > end:
                yield {"operator": name, "skipped": True}
                continue
            rows = time_case(make(name), backends, device, seconds, rates, compiled)
            yield from (about | row for row in rows)


def time_case(
    case: Case,
    backends: Sequence[str],
    device: torch.device,
    seconds: float,
    rates: Mapping[str, float],
    compiled: bool = False,
) -> Iterator[dict]:
    """Yield the rows of torchvision and of each backend, each with its variants.

    rates  see timing.rates

    A wrong result, or an error of ours, has "failed" and no times. What torchvision or a variant
    cannot do has "unmeasured".
    """
    facts = {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": dtype_name(case.dtype),
        "layout": case.layout,
        **case.facts,
    }
    measure = partial(timing.quantiles, device=device, seconds=seconds, with_host=case.images > 0)
    peer = None
    for variant, make in case.peers.items():
        row = facts | _who("torchvision", variant)
        try:
            with case.under.get(variant, nullcontext)():
                row |= _per_image(case, measure(make()))
            peer = peer if variant else row["p50_ms"]
        except Exception as error:
            row["unmeasured"] = _reason(error, device)
        yield row
    expected = case.oracle() if case.oracle else None
    backends = backends if case.backends is None else case.backends
    for backend in backends:
        work = {}
        for variant, wrap in {"": lambda call: call, **case.variants}.items():
            row = facts | _who(backend, variant)
            try:
                call = wrap(case.ours(backend))
                result = call()
                work = work or _work(case, call, result)
                row |= _checked(case, result, expected)
                if "failed" not in row:
                    times = _per_image(case, measure(call))
                    row |= times | work | _shares(times, work, peer, rates)
            except Exception as error:
                row["unmeasured" if variant else "failed"] = _reason(error, device)
            yield row
    if not compiled or case.compiled is None:
        return
    for who in (*(["torchvision"] if case.peers else []), *backends):
        row = facts | _who(who, "compile")
        try:
            row |= _per_image(case, case.compiled(who, seconds))
        except Exception as error:
            row["unmeasured"] = _reason(error, device)
        yield row


def _who(backend, variant):
    return {"backend": backend} | ({"variant": variant} if variant else {})


def _checked(case, result, expected):
    """Compare a result with the float64 answer, if there is one."""
    if case.oracle is None:
        return {}
    error = case.compare(result, expected)
    if error <= case.tolerance:
        return {"error": error}
    return {"failed": f"error {error:.3g} > {case.tolerance:.3g}, not measured"}


def _work(case, call, result):
    """Count the FLOP of a whole model, or the bytes that an operator has to move."""
    if not case.images:
        results = [result] if isinstance(result, torch.Tensor) else result
        return {"bytes": sum(x.nbytes for x in (*case.inputs, *results))}
    with FlopCounterMode(display=False) as counter:
        call()
    return {"flop": counter.get_total_flops()}


def _per_image(case, times):
    """Add the images per second to the times of a whole model."""
    of_model = {"images_s": round(1000 * case.images / times["p50_ms"], 2)}
    return times | of_model if case.images else times


def _shares(times, work, peer, rates):
    """Compare the time with torchvision's and the rates of a copy and, on a GPU, of a product."""
    seconds = times["p50_ms"] / 1000
    shares = {"peer_ratio": round(peer / times["p50_ms"], 3) if peer else None}
    if "bytes" in work:
        shares["copy_share"] = round(work["bytes"] / seconds / rates["copy"], 4)
    if "flop" in work and times["timing"] != "clock":
        shares["matmul_share"] = round(work["flop"] / seconds / rates["matmul"], 4)
    return shares


def _reason(error, device):
    """Say in a few words why something could not be measured, and free what it held."""
    if device.type == "cuda":
        # Raises if the GPU itself failed: nothing could be measured after that.
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    if isinstance(error, NotImplementedError) or "not implemented for" in str(error):
        return "no kernel"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}"


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
    *,
    model: bool = False,
    compiled: bool = False,
    curves: bool = False,
    draw: bool = False,
    budget: float = float("inf"),
) -> int:
    """Measure, print a line per row and append the rows to OUTPUT/<device>.jsonl.

    seconds   per measurement
    only      measure only operators whose name contains this text
    model     also NumPy's models and training steps, and on a CPU R50-FPN with torchvision's
    compiled  also measure whole models by torch.compile
    curves    measure time against the numbers of RoIs, pixels, images and objects instead, and
              draw OUTPUT/<device>.png if Matplotlib is installed
    draw      measure nothing and draw the curves of earlier rows
    budget    seconds after which no case is begun

    Returns 1 if a result was wrong, else 0.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    path = Path(output) / f"{device.type}.jsonl"
    if draw:
        print(benchmark_curves.draw(path))
        return 0
    named = (benchmark_curves if curves else sys.modules[__name__]).cases(device)
    if model and device.type == "cpu" and not curves:
        named = itertools.chain(named, full_width())
    named = list(named)
    chosen = [(name, make) for name, make in named if only in name]
    if not chosen and not model:
        names = ", ".join(dict.fromkeys(name for name, _ in named))
        raise ValueError(f"no operator has {only!r} in its name: {names}")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = run(chosen, device, seconds=seconds, compiled=compiled, budget=budget)
    if model:
        numpy_rows = numpy_and_torch(seconds, only)
        rows = itertools.chain(rows, (environment(device) | row for row in numpy_rows))
    failed, skipped = 0, []
    header = f"{'operator':27} {'backend':25} {'dtype':9} {'layout':14}"
    print(f"{header} {'p20 ms':>9} {'p50 ms':>9} {'p80 ms':>9} {'x peer':>7}  shape")
    with path.open("a") as file:
        for row in rows:
            if "skipped" in row:
                skipped.append(row["operator"])
                continue
            failed += "failed" in row
            print(_line(row), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(f"Results: {path}")
    if curves:
        print(benchmark_curves.draw(path))
    if skipped:
        names = ", ".join(f"{name} x {skipped.count(name)}" for name in dict.fromkeys(skipped))
        print(f"{len(skipped)} cases were skipped after {budget:g} s: {names}")
    if failed:
        print(f"{failed} results were wrong and not measured.")
    return 1 if failed else 0


def _line(row):
    who = "/".join(filter(None, (row["backend"], row.get("variant"))))
    names = f"{row['operator']:27} {who:25} {row['dtype']:9} {row['layout']:14}"
    problem = row.get("failed") or row.get("unmeasured")
    if problem:
        return f"{names} {problem}  {row['shape']}"
    times = " ".join(f"{row[f'p{q}_ms']:9.3f}" for q in (20, 50, 80))
    facts = [row["shape"]]
    facts += [f"{row['images_s']:.1f} images/s"] if "images_s" in row else []
    facts += [f"{row['memory_mb']} MB"] if "memory_mb" in row else []
    facts += [f"{100 * row['copy_share']:.0f}% of copy"] if "copy_share" in row else []
    facts += [f"{100 * row['matmul_share']:.0f}% of matmul"] if "matmul_share" in row else []
    return f"{names} {times} {row.get('peer_ratio') or '':>7}  {', '.join(facts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with the options of `maskrcnn benchmark`, without its dependencies."""
    parser = argparse.ArgumentParser(
        prog="python -m accelerated.experiments.benchmark",
        description="Measure the operators, training steps and inference.",
    )
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("--output", type=Path, default=Path("benchmarks/results"), help="output folder")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto")
    add("--seconds", type=float, default=0.5, help="seconds per measurement (default: 0.5)")
    add("--only", default="", help="measure only operators whose name contains this text")
    flag("--model", help="also compare whole models of NumPy, PyTorch and torchvision")
    flag("--compile", dest="compiled", help="also measure models by torch.compile")
    flag("--curves", help="measure time against RoIs, pixels, images and objects instead")
    flag("--draw", help="measure nothing, draw the curves measured before")
    add("--budget", type=float, default=float("inf"), help="seconds after which no case begins")
    return report(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
