"""What compiled kernels cost, without a GPU: budgets of machine code, of work and of operators.

The tests compile each kernel for sm_90 (R50-FPN, mostly bfloat16 and channels-last), and RoIAlign
and NMS for sm_80 and sm_100. Every dtype, layout, number of bins and convention for all three chips
is compiled by `maskrcnn benchmark --compiled --all` only, which takes minutes. No test here tells
how long a kernel waits, or whether its numbers are right: for these, others interpret the kernels.
"""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import compiled_budgets, kernel_loops

from accelerated.experiments import (
    compiled,
    compiled_code,
    compiled_launches,
    compiled_step,
    compiled_visits,
)
from accelerated.experiments.compiled_code import Code, Loop
from accelerated.experiments.compiled_launches import Case

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]

RECORDED = {
    package.__name__: package.__version__.startswith(version)
    for package, version in ((triton, compiled_budgets.TRITON), (torch, compiled_budgets.TORCH))
}
SAME_TRITON = pytest.mark.skipif(
    not RECORDED["triton"], reason=f"the budgets are of code by Triton {compiled_budgets.TRITON}"
)


@pytest.fixture(scope="module")
def rows():
    """The code of the selected launches, compiled once for all tests."""
    return compiled_launches.compile_all(compiled_launches.selected())


@pytest.fixture(scope="module")
def operations():
    """The operators of a training step and of a detection."""
    step = compiled_step.training_step(compiled.IMAGES)
    return {"training_step": step, "detection": compiled_step.detection(1)}


def problems(row, entry):
    """Yield what a row costs more than its entry of KERNELS."""
    names = "registers", "stack", "shared memory", "programs per multiprocessor", "load", "store"
    values = row.registers, row.stack, row.shared, row.programs, row.load, row.store
    for name, value, budget in zip(names[:3], values[:3], entry[:3], strict=True):
        if value > budget:
            yield f"{name}: {value} > {budget}"
    for name, value, budget in zip(names[3:], values[3:], entry[3:6], strict=True):
        if value < budget:
            yield f"{name}: {value} < {budget}"
    if len(row.levels) != len(entry[6]):
        yield f"{len(row.levels) - 1} nested loops, recorded with {len(entry[6]) - 1}"
    for level, (value, budget) in enumerate(zip(row.levels, entry[6], strict=False)):
        if value > budget:
            yield f"instructions of level {level}: {value} > {budget}"


@SAME_TRITON
def test_kernels_stay_within_their_budgets(rows):
    found = []
    for row in rows:
        case, kernel = compiled_budgets.key(row)
        entry = compiled_budgets.KERNELS.get(case, {}).get(kernel)
        listed = problems(row, entry) if entry else ["no entry"]
        found += [f"{case}, {kernel}: {problem}" for problem in listed]
    assert not found, "\n".join([*found, compiled_budgets.__doc__])


@SAME_TRITON
def test_every_budget_belongs_to_a_kernel(rows):
    budgets = {(case, name) for case, of in compiled_budgets.KERNELS.items() for name in of}
    assert budgets == {compiled_budgets.key(row) for row in rows}
    assert compiled_budgets.NARROW.keys() <= {name for _, name in budgets}


def test_a_worse_kernel_is_noticed(rows):
    row = rows[0]
    entry = compiled_budgets.kernel(row)
    assert list(problems(row, entry)) == []
    deeper = [*row.loops, replace(row.loops[-1], depth=row.loops[-1].depth + 1)]
    longer = [replace(loop, instructions=2 * loop.instructions) for loop in row.loops]
    narrower = [replace(loop, load=2) for loop in row.loops]
    for worse in (
        replace(row, registers=row.registers + 8),
        replace(row, stack=8),
        replace(row, shared=row.shared + 1024),
        replace(row, programs=row.programs - 1),
        replace(row, loops=narrower),
        replace(row, loops=deeper),
        replace(row, loops=longer),
    ):
        assert list(problems(worse, entry))


def test_no_innermost_loop_spills(rows):
    assert [(row.case, row.kernel) for row in rows if row.inner_spills] == []


def test_contiguous_channels_move_in_16_bytes(rows):
    """Except in kernels that are listed with a reason, each of which needs to be."""
    last = [
        row
        for row in rows
        if " nhwc " in row.case and row.case.split()[0] in compiled_launches.POOLING
    ]
    last = [row for row in last if not re.search("mark|order", row.kernel)]
    narrow = {compiled_budgets.key(row)[1] for row in last if min(row.load, row.store) < 16}
    assert narrow == compiled_budgets.NARROW.keys()


def test_every_kernel_is_compiled(rows):
    kernels = {node.name for node in kernel_loops.functions() if node.name.endswith("_kernel")}
    assert kernels == {row.kernel for row in rows if row.chip == 90}
    assert {row.chip for row in rows} == set(compiled_launches.CHIPS)


def test_the_command_compiles_every_combination():
    cases = compiled_launches.complete()[80]
    for operator in compiled_launches.POOLING:
        seen = {(c.bins, c.dtype, c.layout) for c in cases if c.operator == operator}
        assert len(seen) == 2 * 3 * 2
    assert len(set(map(str, cases))) == len(cases)
    selected = {case for of_chip in compiled_launches.selected().values() for case in of_chip}
    assert selected <= set(cases)


@SAME_TRITON
def test_the_work_of_roi_align(rows):
    works = compiled_visits.model(compiled_launches.WORKLOADS, rows)
    assert {(work.case, work.part) for work in works} == compiled_budgets.WORK.keys()
    for work in works:
        assert work.ours <= 1e6 * compiled_budgets.WORK[work.case, work.part], work


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled")
def test_visits_are_those_of_the_interpreted_kernels(monkeypatch):
    """The lines that the interpreter runs, in small images; RoIs also leave them."""
    for module in (compiled_launches, compiled_visits):
        monkeypatch.setattr(module, "HEIGHT", 96)
        monkeypatch.setattr(module, "WIDTH", 160)
    monkeypatch.setattr(compiled_launches, "CHANNELS", 2)
    case = Case("align", 2, 2, "torchvision_r50_fpn", 5, "fp32", "nhwc")
    corners = [[-50, 60, 40, 130], [300, 10, 360, 90], [0, 0, 160, 96], [8, 8, 28, 28]]
    boxes, image = torch.tensor(corners).float(), torch.tensor([0, 0, 1, 1])
    level = torch.tensor([1, 0, 0, 0])
    for module in (compiled_launches, compiled_visits):
        monkeypatch.setattr(module, "regions", lambda case: (boxes, image, level))
    monkeypatch.setattr(compiled_launches.pooler, "assign", lambda rois, settings: level + 2)
    known, expected = compiled_visits.COUNTED, compiled_visits.visits(case)
    names = {*known, "mark_tiles"}
    ran = kernel_loops.iterations(names, lambda: compiled_launches.call(case))
    ran["_roi_align_mark_kernel"] += ran["mark_tiles"][1:]
    assert expected.chunks > expected.pairs > 15 and expected.mark_steps == 3
    for kernel, counted in known.items():
        assert ran[kernel] == counted(code(kernel, GRIDS[kernel]), expected), kernel


# Of that case: 5 rows of bins of 4 RoIs; 2 images and one more; 15 + 6 + 2 + 1 tiles an image.
GRIDS = {
    "_roi_align_forward_kernel": (20, 1),
    "_roi_order_kernel": (3,),
    "_roi_align_mark_kernel": (4,),
    "_roi_align_mean_backward_kernel": (24, 1, 2),
}


def test_words_and_groups_of_marks():
    """RoIs of an image fill words of 32, which begin behind those of the images before."""
    settings = "torchvision_r50_fpn", 7, "bf16", "nhwc"
    one, many = (compiled_visits.visits(Case("align", 2, n, *settings)) for n in (40, 1100))
    # 2 words for each image, in one group; 35 and 36 words in two.
    assert (one.count, one.groups, many.groups) == (80, 2, 4)
    assert one.word_pairs < one.pairs <= one.chunks and many.mark_steps > many.count


def code(kernel, grid, *instructions):
    """Code of nested loops with these instructions per level, from the outside in."""
    loops = [Loop("", depth, count, 0, 0, 0, False) for depth, count in enumerate(instructions)]
    return Code(90, "", kernel, grid, 4, 32, 0, 0, 1, loops, 0, 0)


def test_instructions_are_visits_times_code():
    """By hand: four warps, and what each level costs."""
    v = compiled_visits.Visits(2000, groups=6, word_pairs=7, pairs=10, chunks=11, mark_steps=70)
    count = compiled_visits.instructions
    mean = "_roi_align_mean_backward_kernel"
    levels = 1 * 48 + 10 * 8 * 2 * 6 + 100 * 14 + 1000 * 20 + 10000 * 22
    assert count(code(mean, (8, 2, 3), 1, 10, 100, 1000, 10000), v) == 4 * levels
    assert count(code("_roi_order_kernel", (3,), 5, 7), v) == 4 * (15 + 42)
    assert count(code("_roi_align_mark_kernel", (64,), 5, 3), v) == 4 * (320 + 210)
    forward = "_roi_align_forward_kernel"
    assert count(code(forward, (8, 2), 5, 3), v) == 4 * (80 + 96)
    assert count(code(forward, (8, 2), 5, 3, 2), v) == 4 * (80 + 96 + 128)
    with pytest.raises(ValueError, match="has 2 nested loops"):
        count(code(mean, (8, 2, 3), 1, 10, 100), v)


SASS = """
\t//## File "{kernel}", line 2
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
\t//## File "{inner}", line 9 inlined at "{kernel}", line 4
\t//## File "{kernel}", line 4
        /*0010*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
        /*0020*/                   BRA.DIV UR4, `(.L_x_5) ;
.L_x_1:
        /*0030*/                   BSSY B0, `(.L_x_3) ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0060*/                   LDL R9, [R1] ;
.L_x_2:
        /*0070*/                   BSYNC B0 ;
        /*0080*/                   EXIT ;
.L_x_3:
\t//## File "{kernel}", line 5
        /*0090*/               @P0 BRA `(.L_x_1) ;
\t//## File "{kernel}", line 3
        /*00a0*/              @!P2 CALL.REL.NOINC `(.L_x_4) ;
        /*00b0*/                   BRA `(.L_x_0) ;
.L_x_4:
        /*00c0*/                   STG.E.U16 desc[UR4][R2.64], R5 ;
        /*00d0*/                   CALL.REL.NOINC `($__internal_0_$__cuda_div_slowpath) ;
        /*00e0*/                   EXIT ;
.L_x_5:
        /*00f0*/                   WARPSYNC.COLLECTIVE R8, `(.L_x_1) ;
        /*0100*/                   BRA `(.L_x_1) ;
"""


def test_loops_of_machine_code(tmp_path):
    """Nested loops by their names; what only a divergent warp reaches belongs to none."""
    kernel, inner = tmp_path / "kernel.py", tmp_path / "inner.py"
    kernel.write_text("def f():\n    x = 0\n    for i in x:\n        x = g(x)\n"
                      "        while x > 0:\n            x = 1\n")  # fmt: skip
    inner.write_text("\n" * 10)
    text = SASS.format(kernel=kernel, inner=inner)
    instructions, labels = compiled_code.disassembled(text)
    assert len(instructions) == 17
    assert instructions[1][1] == ((str(kernel), 4), (str(inner), 9))
    assert compiled_code.loops(instructions, labels) == [
        Loop("", 0, 4, 0, 0, 2, False),
        Loop("for i", 1, 4, 0, 8, 0, False),
        Loop("while x > 0", 2, 6, 1, 16, 0, True),
    ]


@pytest.mark.parametrize(
    ("chip", "registers", "warps", "shared", "programs"),
    [
        (90, 32, 4, 0, 16),
        # A warp takes 3072 registers: 5 fit in each quarter.
        (90, 90, 4, 0, 5),
        (90, 255, 2, 0, 4),
        (90, 16, 1, 0, 32),
        (90, 32, 4, 57 * 1024, 3),
        (80, 32, 4, 57 * 1024, 2),
    ],
)
def test_programs_per_multiprocessor(chip, registers, warps, shared, programs):
    found = compiled_code.programs_per_multiprocessor(chip, registers, warps, shared)
    assert found == programs


@pytest.mark.skipif(
    not RECORDED["torch"], reason=f"the counts are of PyTorch {compiled_budgets.TORCH}"
)
def test_operators_of_a_step_and_a_detection(operations):
    for name, listed in operations.items():
        most, launches = compiled_budgets.OPERATORS[name]
        assert len(listed) <= most and sum(x.launches for x in listed) <= launches, name


def test_bytes_flop_and_bound_of_operators(operations):
    """A convolution by hand; 16 images of 800x1344 into the stem, 7x7, 3 to 64 channels."""
    step = operations["training_step"]
    stem = next(x for x in step if x.name == "convolution")
    outputs = 16 * 64 * 400 * 672
    assert stem.flop == 2 * outputs * 3 * 49
    moved = 2 * (16 * 3 * 800 * 1344 + 64 * 3 * 49 + outputs)
    assert moved <= stem.bytes <= moved + 2 * 2 * outputs + 128
    assert stem.seconds == max(stem.bytes / 2.8e12, stem.flop / 474e12, 2.5e-6 * stem.launches)
    phases = [x.phase for x in step]
    assert list(dict.fromkeys(phases)) == ["forward", "backward", "optimizer"]
    assert {"roi_align", "roi_align_backward", "nms_keep_mask", "mask_targets"} <= {
        x.name for x in step
    }
    assert not any(x.name in ("view", "permute", "anchors") for x in step)
    assert "norm.py" in {x.file for x in step} and "anchors.py" not in {x.file for x in step}


def test_tables_fit_100_columns(rows, operations):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(compiled.kernels("Kernels", rows))
    console.print(compiled.work(compiled_visits.model(compiled_launches.WORKLOADS, rows)))
    console.print(compiled.operations(operations["training_step"], operations["detection"]))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 100
    widest = [replace(rows[0], case="align_max 14x14 bf16 nhwc d2 16x128", stack=1000)]
    console.print(compiled.kernels("Kernels", widest))
    assert "…" not in console.export_text()


RUN = """
import sys
{setup}
from accelerated.command_line import cli
sys.argv = ["maskrcnn", "benchmark", {arguments}]
cli.main()
"""


@pytest.mark.parametrize(
    ("setup", "arguments", "message"),
    [
        ("sys.modules['triton'] = None", "'--compiled'", "pip install triton"),
        (
            "from pathlib import Path; Path.exists = lambda path: path.name != 'nvdisasm'",
            "'--compiled'",
            "nvdisasm is missing",
        ),
        ("", "'--all'", "--all also needs --compiled"),
    ],
)
def test_what_is_missing_is_one_line(setup, arguments, message):
    code = RUN.format(setup=setup, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line


def test_interpreted_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with (
        pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"),
        compiled_launches.recorded(90),
    ):
        pass
