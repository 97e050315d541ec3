"""What the compiled kernels say about speed, on a machine without a GPU.

1. Every kernel, compiled for the chips: registers, shared memory, occupancy, width of loads and
   stores, instructions of each level of loops.
2. RoIAlign's work: instructions times visits, next to torchvision's.
3. A training step and a detection: operators, launches, bytes, FLOP, and the time that these bound.

All of it is counted or computed from stated rates; nothing is a measured time. `maskrcnn benchmark
--compiled` and `python -m accelerated.experiments.compiled` print it. Needs Triton, for Linux.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from accelerated.experiments import compiled_code, compiled_launches, compiled_step, compiled_visits
from accelerated.experiments.compiled_code import Code
from accelerated.experiments.compiled_step import Operation
from accelerated.experiments.compiled_visits import Work

# Images of a training step, and the files with the most operators that are listed.
IMAGES, FILES = 16, 8


def report(every: bool, width: int | None = None) -> None:
    """Print all tables.

    every   compile every dtype, layout and convention for every chip, which takes some minutes;
            otherwise what the tests compile: each kernel for sm_90, a few for the other chips
    width   of the tables; None: the terminal's, or 100

    RuntimeError where Triton or its disassembler is missing, or a kernel does not compile.
    """
    compiled_code.tool("nvdisasm")
    width = width or (None if sys.stdout.isatty() else 100)
    console = Console(highlight=False, markup=False, width=width)
    wanted = compiled_launches.complete() if every else compiled_launches.selected()
    chips = ", ".join(f"{len(cases)} for sm_{chip}" for chip, cases in wanted.items())
    console.print(f"Compiling calls of operators: {chips} ...")
    rows = compiled_launches.compile_all(wanted)
    for chip, group in groupby(rows, lambda row: row.chip):
        console.print(kernels(f"Kernels for sm_{chip}", list(group)))
    console.print(
        "Cases: operator, bins, dtype, layout, convention (d2: detectron2's), images x RoIs. occ:"
        " share of a multiprocessor's warps. in, out: bytes per thread of the widest load and store"
        " of the deepest loop that has one. spill: accesses to local memory in innermost loops."
        " Instructions: of one visit, outside of loops, then of each level from the outside in."
    )
    spilling = sum(row.inner_spills > 0 for row in rows)
    console.print(f"{len(rows)} launches compiled; innermost loops of {spilling} spill.\n")
    console.print(work(compiled_visits.model(compiled_launches.WORKLOADS, rows)))
    console.print(
        "Instructions of warps on sm_90; torchvision: its own float32 code, + its atomic additions,"
        " not counted for 16x512. IPC: instructions per cycle of each multiprocessor of an H100, at"
        " most 4. copy: features and outputs moved once at 2.8 TB/s. RoIs: sides log-uniform in"
        " 16..600 pixels."
    )
    step, detected = compiled_step.training_step(IMAGES), compiled_step.detection(1)
    console.print(operations(step, detected))
    console.print(
        f"R50-FPN, {compiled_launches.HEIGHT}x{compiled_launches.WIDTH}, bfloat16 autocast; files:"
        " of the forward. bound: the sum over operators of the longest of bytes at 2.8 TB/s, FLOP"
        " at 474 TFLOP/s, and 2.5 us a launch. Our operators count here by their bytes only."
    )


def kernels(title: str, rows: Sequence[Code]) -> Table:
    """Show the kernels of one chip, case by case."""
    columns = ["", "warps", "regs", "stack", "smem", "occ", "in", "out", "spill"]
    table = _table(title, [*columns, "instructions"])
    for case, group in groupby(rows, lambda row: row.case):
        words = case.split()
        first = 2 if len(words) > 2 else 1
        name, settings = " ".join(words[:first]), " ".join(words[first:])
        table.add_row(name, *[""] * (len(columns) - 1), settings, style="bold")
        shown = None
        for row in group:
            cells = (
                f"  {row.kernel.strip('_').removesuffix('_kernel')}",
                row.warps,
                row.registers,
                row.stack,
                row.shared,
                f"{row.occupancy:.2f}",
                row.load,
                row.store,
                row.inner_spills,
                " ".join(map(str, row.levels)),
            )
            # RoIPool launches its backward once per level.
            if cells != shown:
                table.add_row(*map(str, cells))
            shown = cells
    return table


def work(rows: Sequence[Work]) -> Table:
    """Show RoIAlign's work next to torchvision's."""
    columns = ["ours", "torchvision", "ratio", "IPC 4, ms", "IPC 2, ms", "copy, ms"]
    table = _table("Warp instructions of RoIAlign, millions", ["", *columns])
    for case, group in groupby(rows, lambda row: row.case):
        table.add_row(case, style="bold")
        for row in group:
            theirs, ratio = "", ""
            if row.torchvision:
                theirs = f"{row.torchvision / 1e6:,.0f}"
                theirs += f" + {row.atomics / 1e6:.0f}" if row.atomics else ""
                ratio = f"{row.ours / (row.torchvision + (row.atomics or 0)):.2f}"
            name = "backward with mark" if row.part == "backward" else row.part
            times = [f"{row.issue_ms:.3f}", f"{2 * row.issue_ms:.3f}"]
            copy = f"{row.copy_ms:.3f}" if row.copy_ms else ""
            table.add_row(f"  {name}", f"{row.ours / 1e6:,.0f}", theirs, ratio, *times, copy)
    return table


def operations(step: Sequence[Operation], detected: Sequence[Operation]) -> Table:
    """Show the operators of a training step and a detection by phase, and by file."""
    columns = ["", "operators", "launches", "GB", "TFLOP", "bound, ms"]
    table = _table("Operators", columns)
    for name, listed in ((f"training step, {IMAGES} images", step), ("detection", detected)):
        table.add_row(name, *_sums(listed), style="bold")
        phases = list(dict.fromkeys(operation.phase for operation in listed))
        for phase in phases if len(phases) > 1 else []:
            table.add_row(f"  {phase}", *_sums([x for x in listed if x.phase == phase]))
        files = Counter(x.file for x in listed if x.phase in ("forward", "detection"))
        for file, _ in files.most_common(FILES):
            of_file = [x for x in listed if x.file == file and x.phase in ("forward", "detection")]
            table.add_row(f"    {file}", *_sums(of_file))
    return table


def _sums(listed):
    return (
        str(len(listed)),
        str(sum(x.launches for x in listed)),
        f"{sum(x.bytes for x in listed) / 1e9:.2f}",
        f"{sum(x.flop for x in listed) / 1e12:.2f}",
        f"{1000 * sum(x.seconds for x in listed):.2f}",
    )


def _table(title, columns):
    table = Table(
        title=title,
        box=box.SIMPLE,
        title_justify="left",
        title_style="bold",
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        left = column in ("", "instructions")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of `maskrcnn benchmark --compiled`."""
    parser = argparse.ArgumentParser(
        prog="python -m accelerated.experiments.compiled",
        description="Compile the kernels for GPUs that are not there, and read the machine code.",
    )
    parser.add_argument("--all", action="store_true", help="every dtype, layout and chip")
    try:
        report(parser.parse_args(arguments).all)
    except RuntimeError as error:
        print(f"compiled: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
