"""Counts of a training step and a detection at full size: operators, launches, bytes, FLOP, bound.

The model runs on fake tensors, which have shapes and no values, so that nothing is computed and no
GPU is needed. Autocast is that of the CPU, which stands for CUDA's. Operators that make views are
not counted. A launch per operator is an estimate: some are known to launch more, which is counted
(a convolution adds its bias in a pass of its own), others do so unknown to us (sorting); and the
norms of all gradients, here one by one, take CUDA a few launches. What a model remembers from its
first step on, anchors and the constants of frozen norms, is not counted.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from accelerated import norm
from accelerated import optimizer as torch_optimizer
from accelerated.experiments.compiled_launches import HEIGHT, WIDTH
from accelerated.experiments.compiled_visits import COPY_RATE
from accelerated.mask_rcnn import MaskRCNN
from accelerated.parameters import set_memory_format
from accelerated.structures import Batch
from reference.config import Config, preset

# H100 SXM, bfloat16: 60% of the 790 TFLOP/s that large products reach; seconds of a launch.
MATRIX_RATE, LAUNCH = 0.6 * 790e12, 2.5e-6
PRESET = "torchvision_r50_fpn"
# Ground-truth slots of an image.
OBJECTS = 20
# Kernels of our own operators, which PyTorch sees as one.
OURS = {"roi_align_backward": 2, "roi_pool_backward": 4, "nms_keep_mask": 2}
# Operators that are no views and yet move nothing.
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NOTHING |= {"lift_fresh", "_unsafe_view", "scalar_tensor"}


@dataclass
class Operation:
    """An operator that was called: in which phase, from which of our files, and what it moves."""

    phase: str
    name: str
    file: str
    launches: int
    bytes: int
    flop: int

    @property
    def seconds(self) -> float:
        """Return the least time that the rates allow."""
        rates = self.flop / MATRIX_RATE, self.bytes / COPY_RATE
        return max(*rates, LAUNCH * self.launches)


class Recorder(TorchDispatchMode):
    """Lists the operators that are called inside."""

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []
        self.phase = ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        name = function._schema.name.split("::")[-1]
        inputs, outputs = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
            for tree in ((args, kwargs), out)
        )
        works = bool(outputs) or function._schema.is_mutable
        if self.phase and works and not function.is_view and name not in NOTHING:
            moved = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
            if name == "convolution" and args[2] is not None:
                moved += 2 * _bytes(out)
            formula = flop_registry.get(function._overloadpacket)
            self.operations.append(
                Operation(
                    self.phase,
                    name,
                    _file(),
                    _launches(name, args),
                    moved,
                    formula(*args, **kwargs, out_val=out) if formula else 0,
                )
            )
            # The anchors of a shape are made once.
            if self.operations[-1].file == "anchors.py":
                self.operations.pop()
        return out


def _bytes(tensor):
    """Bytes of memory behind a tensor, of which an expanded one has fewer than elements."""
    size = tensor.numel() * tensor.element_size()
    return min(size, tensor.untyped_storage().nbytes())


def _launches(name, arguments):
    """Kernels of an operator, as far as known."""
    if name == "convolution":
        return 1 + (arguments[2] is not None)
    if name == "convolution_backward":
        return sum(arguments[-1])
    return OURS.get(name, 1)


def _file():
    """Name the innermost of our files among the callers."""
    frame = sys._getframe(2)
    package = str(Path(__file__).parents[1])
    while frame is not None:
        if frame.f_code.co_filename.startswith(package):
            path = Path(frame.f_code.co_filename)
            return "autograd" if path == Path(__file__) else path.relative_to(package).as_posix()
        frame = frame.f_back
    return "autograd"


def training_step(images: int) -> list[Operation]:
    """List the operators of a step of R50-FPN in bfloat16 autocast: losses, backward, update."""
    with listed() as recorder:
        model, batch = inputs(preset(PRESET), images, training=True)
        config = model.config.optimizer
        optimizer = torch_optimizer.build(model, config)
        recorder.phase = "forward"
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.stack(list(model.batch_losses(batch).values())).sum()
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "optimizer"
        torch_optimizer.step(optimizer, config.learning_rate, config.clip_gradient_norm)
    return recorder.operations


def detection(images: int) -> list[Operation]:
    """List the operators of a detection of R50-FPN in bfloat16 autocast, without pasting."""
    with listed() as recorder:
        model, batch = inputs(preset(PRESET), images, training=False)
        recorder.phase = "detection"
        with torch.autocast("cpu", torch.bfloat16):
            model.batch_detections(batch)
    return recorder.operations


@contextmanager
def listed() -> Iterator[Recorder]:
    """List the operators that are called while this lasts, in a phase that the caller names.

    Nothing is computed; checks of values, which a CPU makes and a GPU does not, are left out.
    """
    with FakeTensorMode(), Recorder() as recorder:

        def remembered(self, constant, *tensors):
            # Computed in the first step only.
            phase, recorder.phase = recorder.phase, ""
            try:
                return self.function(constant, *tensors)
            finally:
                recorder.phase = phase

        with (
            mock.patch.object(torch.compiler, "is_compiling", lambda: True),
            mock.patch.object(norm.Remembered, "__call__", remembered),
        ):
            yield recorder


def inputs(config: Config, images: int, training: bool) -> tuple[MaskRCNN, Batch]:
    """Make a model and a batch of HEIGHT x WIDTH without values; call it inside of `listed`."""
    model = MaskRCNN(config, backend="triton").train(training)
    if training:
        set_memory_format(model, torch.channels_last)
    shape = (images, OBJECTS)
    batch = Batch(
        images=torch.empty(images, 3, HEIGHT, WIDTH).to(memory_format=torch.channels_last),
        sizes=torch.empty(images, 2, dtype=torch.int64),
        boxes=torch.empty(*shape, 4),
        labels=torch.empty(shape, dtype=torch.int64),
        valid=torch.empty(shape, dtype=torch.bool),
        masks=torch.empty(*shape, HEIGHT, WIDTH // 8, dtype=torch.uint8),
        original_sizes=[(HEIGHT, WIDTH)] * images,
        image_ids=list(range(images)),
    )
    return model, batch
