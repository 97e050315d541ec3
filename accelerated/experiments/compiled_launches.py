"""Compiles every launch of R50-FPN for a GPU that is not there; nothing is launched.

A stand-in driver reports the chip. The public operators run on CPU tensors of the real shapes,
whose values are never read by a kernel, and Triton compiles what they would launch: signatures,
divisibility and constants are those of the chip.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import torch

from accelerated import backend, masks, matcher, nms, pooler
from accelerated.experiments import compiled_code
from accelerated.experiments.benchmark_cases import random_boxes
from accelerated.experiments.compiled_code import Code
from accelerated.experiments.timing import in_a_process
from reference.config import Pooler, preset

CHIPS = 80, 90, 100
HEIGHT, WIDTH, CHANNELS, STRIDES = 800, 1344, 256, (4, 8, 16, 32)
# Sides of the RoIs in pixels, log-uniform.
SIDES = 16, 600
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
# Operators of RoIs, as (operator, aggregate) of the configuration's pooler.
POOLING = {
    "align": ("roi_align", "mean"),
    "align_max": ("roi_align", "max"),
    "pool": ("roi_pool", "max"),
}


@dataclass(frozen=True)
class Case:
    """One call of an operator, forward and backward.

    operator  a name of POOLING, or "match", "nms", "targets", "polygons", "paste"
    images    for "nms" the number of rows
    rois      per image; anchors, boxes of a row, detections
    preset    whose convention the operator follows
    bins, dtype, layout  of POOLING only
    """

    operator: str
    images: int
    rois: int
    preset: str
    bins: int = 0
    dtype: str = ""
    layout: str = ""

    def __str__(self):
        size = [f"{self.bins}x{self.bins}"] if self.bins else []
        peer = ["d2"] if self.preset.startswith("detectron2") else []
        shape = f"{self.images}x{self.rois}"
        return " ".join(filter(None, [self.operator, *size, self.dtype, self.layout, *peer, shape]))


class Launch(NamedTuple):
    """What would have been launched; `compiled` is a `triton.compiler.CompiledKernel`."""

    kernel: str
    grid: tuple[int, ...]
    compiled: Any


class StandIn:
    """Answers what Triton asks a driver when it compiles, for a chip of compute capability / 10."""

    def __init__(self, chip: int):
        self.chip = chip

    def get_current_target(self) -> Any:
        """Return the chip, as Triton names it."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.chip, 32)

    def get_current_device(self) -> int:
        """Return the number of the device, of which there is none."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where the tensors are."""
        return torch.device("cpu")


@contextmanager
def recorded(chip: int) -> Iterator[list[Launch]]:
    """Compile the launches of the Triton backend for `chip` instead of launching; collect them.

    Inside, operators take backend "triton" for CPU tensors. RuntimeError where the environment asks
    for interpreted kernels, which cannot be compiled in this process.
    """
    # The message for a machine without Triton comes from here.
    compiled_code.tool("nvdisasm")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels cannot be compiled: unset TRITON_INTERPRET before you start")
    from triton.runtime import driver, jit

    launches, run = [], jit.JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **keywords):
        compiled = run(self, *arguments, grid=grid, warmup=True, **keywords)
        launches.append(Launch(self.fn.__name__, tuple(grid), compiled))
        return compiled

    with (
        mock.patch.object(jit.JITFunction, "run", compile_only),
        mock.patch.object(backend, "resolve", lambda name, tensor: name),
    ):
        # It stays: Triton keeps kernels by device number, so that a process serves one chip.
        stand_in: Any = StandIn(chip)
        driver.set_active(stand_in)
        yield launches


def regions(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw the case's RoIs [R, 4] image by image, their images [R] and levels, 0: finest, [R]."""
    generator = torch.Generator().manual_seed(0)
    count = case.images * case.rois
    boxes = random_boxes(count, HEIGHT, WIDTH, *SIDES, generator)
    settings = pooler_of(case)
    level = pooler.assign(boxes, settings) - settings.min_level
    return boxes, torch.arange(case.images).repeat_interleave(case.rois), level


def pooler_of(case: Case) -> Pooler:
    """Return how the case pools."""
    operator, aggregate = POOLING[case.operator]
    settings = preset(case.preset).box_head.pooler
    return replace(settings, operator=operator, aggregate=aggregate, output_size=case.bins)


def call(case: Case) -> None:
    """Run the case's operator, forward and backward, inside `recorded`."""
    if case.operator in POOLING:
        _pool(case)
    else:
        OTHERS[case.operator](case)


def _pool(case):
    boxes, image_index, _ = regions(case)
    features = [
        torch.empty(
            (case.images, CHANNELS, HEIGHT // stride, WIDTH // stride),
            dtype=DTYPES[case.dtype],
            memory_format=LAYOUTS[case.layout],
        ).requires_grad_()
        for stride in STRIDES
    ]
    out = pooler.pool(features, boxes, image_index, pooler_of(case), backend="triton")
    torch.autograd.grad(out, features, torch.empty_like(out))


def _match(case):
    truths, rpn = torch.zeros(case.images, 20, 4), preset(case.preset).rpn
    valid = torch.ones(truths.shape[:2], dtype=torch.bool)
    rules = rpn.foreground_iou, rpn.background_iou, rpn.low_quality_matches, rpn.zero_iou_matches
    matcher.match_boxes(truths, valid, torch.zeros(case.rois, 4), *rules, backend="triton")


def _suppress(case):
    boxes = torch.zeros(case.images, case.rois, 4)
    nms.keep_mask(boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), 0.7, backend="triton")


def _targets(case):
    count, head = case.images * case.rois, preset(case.preset).mask_head
    index = torch.zeros(count, dtype=torch.int64)
    valid = torch.ones(count, dtype=torch.bool)
    packed = torch.empty(case.images, 100, HEIGHT, WIDTH // 8, dtype=torch.uint8)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * case.images)
    boxes = torch.zeros(count, 4)
    masks.targets(packed, index, index, boxes, valid, head, 28, sizes=sizes, backend="triton")


def _polygons(case):
    count, objects, corners = case.images * case.rois, 100, 40
    index = torch.zeros(count, dtype=torch.int64)
    points = torch.zeros(case.images, objects * corners, 2, dtype=torch.float64)
    parts = torch.zeros(case.images, objects + 1, dtype=torch.int64)
    valid, boxes = index == 0, torch.zeros(count, 4)
    outlines = points, parts, parts
    masks.polygon_targets(*outlines, index, index, boxes, valid, 28, backend="triton")


def _paste(case):
    head = preset(case.preset).mask_head
    probabilities, boxes = torch.empty(case.rois, 28, 28), torch.zeros(case.rois, 4)
    masks.paste(
        probabilities,
        boxes,
        HEIGHT,
        WIDTH,
        convention=head.paste,
        threshold=head.threshold,
        backend="triton",
    )


OTHERS: dict[str, Callable[[Case], None]] = {
    "match": _match,
    "nms": _suppress,
    "targets": _targets,
    "polygons": _polygons,
    "paste": _paste,
}

TORCHVISION, DETECTRON2 = "torchvision_r50_fpn", "detectron2_r50_fpn"
# The RoIs of a training step of 16 images by bins, and the thousand of the benchmark.
TRAINING = {7: (16, 512), 14: (16, 128)}
WORKLOADS = [
    Case("align", 2, 500, TORCHVISION, 7, "bf16", "nhwc"),
    Case("align", 2, 500, TORCHVISION, 7, "fp32", "nhwc"),
    Case("align", 16, 512, TORCHVISION, 7, "bf16", "nhwc"),
    Case("align", 16, 128, TORCHVISION, 14, "bf16", "nhwc"),
]
BOXES = [
    Case("nms", 80, 2000, TORCHVISION),
    Case("nms", 90, 1000, TORCHVISION),
    Case("match", 16, 268569, TORCHVISION),
    *(Case("targets", 16, 128, name) for name in (TORCHVISION, DETECTRON2)),
    *(Case("paste", 1, 100, name) for name in (TORCHVISION, DETECTRON2)),
    Case("polygons", 16, 128, DETECTRON2),
]


def selected() -> dict[int, list[Case]]:
    """Return by chip the cases that the tests compile: each kernel for sm_90, a few for others."""
    training = TRAINING[7]
    few = [Case("align", *training, TORCHVISION, 7, "bf16", "nhwc"), BOXES[0]]
    main = [
        *WORKLOADS,
        Case("align", *training, TORCHVISION, 7, "fp16", "nhwc"),
        Case("align", *training, TORCHVISION, 7, "bf16", "nchw"),
        Case("align_max", *training, TORCHVISION, 7, "bf16", "nhwc"),
        Case("pool", *training, TORCHVISION, 7, "bf16", "nhwc"),
        *BOXES[::2],
        BOXES[-1],
    ]
    return {80: few, 90: main, 100: few}


def complete() -> dict[int, list[Case]]:
    """Return by chip every case: operators, dtypes, layouts, bins, conventions."""
    cases = [
        Case(operator, *TRAINING[bins], convention, bins, dtype, layout)
        for operator in POOLING
        for bins in TRAINING
        for convention in ((TORCHVISION, DETECTRON2) if operator == "align" else (TORCHVISION,))
        for dtype in DTYPES
        for layout in LAYOUTS
    ]
    extra = [case for case in WORKLOADS if case not in cases]
    return {chip: [*extra, *cases, *BOXES] for chip in CHIPS}


def collect(chip: int, cases: Iterable[Case]) -> list[Code]:
    """Compile the cases for `chip` and read the code of each kernel of each case."""
    rows, known = [], {}
    # About a default on which no result of ours depends.
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
    for case in cases:
        with recorded(chip) as launches:
            try:
                call(case)
            except Exception as error:
                raise RuntimeError(f"sm_{chip}, {case}: {error}") from error
        for kernel, grid, compiled in dict.fromkeys(launches):
            if compiled.hash not in known:
                known[compiled.hash] = compiled_code.read(compiled, chip, str(case), kernel, grid)
            rows.append(replace(known[compiled.hash], case=str(case), grid=grid))
    return rows


def compile_all(wanted: dict[int, list[Case]]) -> list[Code]:
    """Do the same for several chips, each in its own process, in which kernels are compiled."""
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    try:
        return [row for chip, cases in wanted.items() for row in in_a_process(collect, chip, cases)]
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
