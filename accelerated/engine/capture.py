"""Steps and detections captured as CUDA graphs, and the random numbers that steps are given.

Neither a graph nor compiled code can draw from the generator that belongs to a step. Its sampling
priorities are drawn before instead: the same numbers, of the same shapes in the same order.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from accelerated import anchors, rpn
from accelerated.backend import resolve
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch, PaddedDetections
from reference.config import Config

# Steps of a shape that run as they are, and so compile kernels, fill caches and make the state of
# the optimizer, before one is captured.
WARM_UP = 2

Draws = dict[str, Any]


def draw_priorities(
    model: MaskRCNN, batch: Batch, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw the priorities that `batch_losses` would draw from `generator`."""
    n, _, height, width = batch.images.shape
    # Only the shape and the device are read.
    logits = batch.boxes.new_empty(n, count_anchors(model.config, height, width))
    return model.draw_priorities(logits, batch.boxes, generator)


@cache
def count_anchors(config: Config, height: int, width: int) -> int:
    """Count the anchors T of an image of the batch, by a model that computes shapes alone."""
    # Without a value drawn or a byte written.
    with torch.device("meta"):
        model = MaskRCNN(config)
    model.to_empty(device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        logits, _ = rpn.flatten(*model.rpn(model.features(torch.empty(1, 3, height, width))))
    return logits.shape[1]


def detector(
    model: MaskRCNN, compile: str | None = None, graph: bool = False, amp: bool = False
) -> Callable[[Batch], PaddedDetections]:
    """Return `model.batch_detections`, as it is, compiled, or replayed as a CUDA graph.

    compile  backend of torch.compile, such as "inductor", or None; compiles anew for each shape of
             a batch, for a minute or more
    graph    capture a graph of each shape of a batch, once it has come twice
    amp      bfloat16 autocast

    Raises ValueError if the device of the model cannot do it.
    """
    device = model.weight.device
    if graph:
        check_capture(device, compile, graph, model.backend)
    run = model.batch_detections
    if compile is not None:
        run = torch.compile(run, backend=compile, dynamic=False)
    if amp:
        run = torch.autocast(device.type, torch.bfloat16)(run)
    if not graph:
        return run
    graphs = Graphs(lambda batch, _: run(batch), device)

    def detections(batch: Batch) -> PaddedDetections:
        none = batch.labels[:, :0]
        images = replace(batch, boxes=batch.boxes[:, :0], labels=none, valid=none > 0)
        return graphs(replace(images, masks=batch.masks[:, :0, :0]), {"priorities": {}})

    return detections


def check_capture(
    device: torch.device, compile: str | None, graph: bool, backend: str = "auto"
) -> None:
    """Raise ValueError if `--graph` cannot run on the device or backend, or with `--compile`."""
    if graph and device.type != "cuda":
        raise ValueError(f"--graph needs a CUDA device, not {device.type}: leave it out")
    if graph and resolve(backend, torch.empty(0, device=device)) != "triton":
        raise ValueError("--graph needs the backend triton: torch asks the GPU for counts")
    if graph and compile is not None:
        raise ValueError("--graph and --compile exclude each other: choose one")


class _Captured(NamedTuple):
    """A graph, the tensors that it reads, and what it computes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    result: Any


class Graphs:
    """A function of (batch, {"priorities": ..}), replayed as a CUDA graph of each shape.

    function  takes its parameters, state and settings from tensors that stay where they are, and
              returns tensors without gradient, in any structure

    A result is overwritten by the next call. All graphs share their memory, as only one runs at a
    time. What else a graph reads, such as cached anchors, must stay in memory: drop the graphs
    before other shapes than theirs are computed. After as many shapes as have their anchors kept,
    they are dropped here.
    """

    def __init__(self, function: Callable[[Batch, Draws], Any], device: torch.device):
        self.function, self.calls = function, Counter()
        self.graphs: dict[tuple, _Captured] = {}
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, batch: Batch, draws: Draws) -> Any:
        """Call the function; from the third call with these shapes on, by its graph."""
        inputs = [*batch.tensors().values(), *draws["priorities"].values()]
        shape = tuple(tensor.shape for tensor in inputs)
        if shape not in self.calls and len(self.calls) == anchors.SHAPES:
            self.graphs.clear()
            self.calls.clear()
        self.calls[shape] += 1
        if self.calls[shape] <= WARM_UP:
            return self.function(batch, draws)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(batch, draws, inputs)
        graph, own, result = self.graphs[shape]
        for tensor, new in zip(own, inputs, strict=True):
            tensor.copy_(new)
        graph.replay()
        return result

    def _capture(self, batch, draws, inputs):
        graph = torch.cuda.CUDAGraph()
        # The thread that pins the loader's memory may go on with it.
        mode = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, **mode):
            result = self.function(batch, draws)
        return _Captured(graph, inputs, result)
