"""How long operators, a training step and inference take: ours by backend, and torchvision's beside them where it imports.

Every result is first compared with the float64 `torch` backend's; one that disagrees is reported and not timed. A row is one
line of JSON: date, commit, device, versions, operator, backend, shape, dtype, layout, error, p20/p50/p80 in milliseconds and
peer_ratio = torchvision's p50 / ours (above 1: we are faster).

`python -m accelerated.experiments.benchmark` needs only PyTorch and NumPy.
"""

import argparse
import copy
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from accelerated import nms, optimizer, roi_align, roi_pool
from accelerated.experiments.timing import in_a_process, memory_mb, quantiles
from accelerated.mask_rcnn import MaskRCNN
from accelerated.pooler import pool as pool_levels
from accelerated.structures import Batch, Target
from accelerated.verify import equality
from reference.config import preset

EPS32 = torch.finfo(torch.float32).eps


@dataclass
class Case:
    """One thing to time. `ours` makes a call for a backend; `oracle` gives the float64 answer; `peer` is torchvision's call or None."""

    operator: str
    shape: str
    dtype: torch.dtype
    layout: str
    ours: Callable[[str], Callable]
    oracle: Callable
    tolerance: float
    peer: Callable | None = None


def run(device, *, seconds=0.5, only="", model=False) -> Iterator[dict]:
    """Rows of every case that suits the device, a small set on a CPU; `seconds` is spent on each timing."""
    about = environment(device)
    backends = ["torch", "triton"] if device.type == "cuda" and _imports("triton") else ["torch"]
    for name, make in cases(device):
        if only in name:
            yield from (about | row for row in time_case(make(name), backends, device, seconds))
    if model:
        yield from (about | row for row in numpy_beside_torch(seconds, only))


def cases(device) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """(operator, what makes its case): made one by one, so that memory is freed in between."""
    gpu = device.type == "cuda"
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if gpu else (torch.float32,):
        for layout in ("nchw", "channels_last"):
            for name in ("roi_align", "roi_pool", "pyramid_roi_align"):
                yield f"{name}_forward", partial(pooling, dtype=dtype, layout=layout, device=device)
                yield (
                    f"{name}_backward",
                    partial(pooling, dtype=dtype, layout=layout, device=device),
                )
    yield "batched_nms", partial(suppression, device=device)
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        yield "training_step", partial(whole_model, dtype=dtype, device=device)
        yield "detect", partial(whole_model, dtype=dtype, device=device)


def time_case(case: Case, backends, device, seconds) -> Iterator[dict]:
    """One row per backend and one for the peer; a wrong result gives a row with "failed" instead of times."""
    facts = {
        "operator": case.operator,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
    }
    expected, peer = case.oracle(), None
    if case.peer is not None:
        peer = quantiles(case.peer, device, seconds)
        yield facts | {"backend": "torchvision"} | peer
    for backend in backends:
        call = case.ours(backend)
        error = relative_error(call(), expected)
        if not error <= case.tolerance:
            yield facts | {
                "backend": backend,
                "failed": f"error {error:.3g} > {case.tolerance:.3g}, not timed",
            }
            continue
        times = quantiles(call, device, seconds)
        ratio = round(peer["p50_ms"] / times["p50_ms"], 3) if peer else None
        yield facts | {"backend": backend, "error": error} | times | {"peer_ratio": ratio}


def relative_error(actual, expected) -> float:
    """Return the largest error of tensors or sequences of tensors; infinite if shapes differ."""
    if isinstance(expected, torch.Tensor):
        return equality.difference(actual, expected).relative
    return max(relative_error(a, e) for a, e in zip(actual, expected, strict=True))


def pooling(operator, dtype, layout, device) -> Case:
    """1000 RoIs of 7x7 of two 800x1344 images: from their finest map alone, or each from its level of the pyramid."""
    generator = torch.Generator().manual_seed(0)
    name, _, direction = operator.rpartition("_")
    pooler = replace(preset("torchvision_r50_fpn").box_head.pooler, aligned=True)
    strides = (4, 8, 16, 32) if name.startswith("pyramid") else (4,)
    channels_last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    shapes = [(2, 256, 800 // stride, 1344 // stride) for stride in strides]
    features = [
        torch.randn(s, generator=generator).to(device, dtype, memory_format=channels_last)
        for s in shapes
    ]
    rois = random_boxes(1000, 800, 1344, 16, 600 if len(strides) > 1 else 224, generator).to(device)
    image_index = (torch.arange(1000) % 2).to(device)
    grad = torch.randn((1000, 256, 7, 7), generator=generator).to(device, dtype)

    def pool(features, rois, backend):
        if name == "pyramid_roi_align":
            return pool_levels(
                dict(enumerate(features, 2)), rois, image_index, pooler, backend=backend
            )
        if name == "roi_pool":
            return roi_pool.roi_pool(
                *features, rois, image_index, output_size=7, spatial_scale=0.25, backend=backend
            )
        keywords = {"output_size": 7, "spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True}
        return roi_align.roi_align(*features, rois, image_index, **keywords, backend=backend)

    def bind(call, features, grad):
        """The forward, or the backward of a forward that is done here and now."""
        if direction == "forward":
            return partial(call, features)
        features = [x.detach().requires_grad_() for x in features]
        return partial(torch.autograd.grad, call(features), features, grad, retain_graph=True)

    def oracle():
        where = (
            rois if name == "roi_pool" else rois.double()
        )  # its roundings depend on the coordinates' dtype
        return bind(
            lambda x: pool(x, where, "torch"), [x.double() for x in features], grad.double()
        )()

    peer = _peer_pooling(name, rois, image_index, dtype)
    table = equality.POINTWISE if direction == "forward" else equality.REDUCTION
    tolerance = table[str(dtype).removeprefix("torch.")] + 2 * EPS32 * 336
    shape = " + ".join("x".join(map(str, s)) for s in shapes) + ", 1000 rois 7x7"
    ours = lambda backend: bind(lambda x: pool(x, rois, backend), features, grad)  # noqa: E731
    return Case(
        operator, shape, dtype, layout, ours, oracle, tolerance, peer and bind(peer, features, grad)
    )


def _peer_pooling(name, rois, image_index, dtype):
    operators = _torchvision("ops")
    if operators is None:
        return None
    if name == "pyramid_roi_align":
        pool = operators.MultiScaleRoIAlign(list("2345"), 7, 2)
        rows = [rois[image_index == n] for n in (0, 1)]
        return lambda features: pool(
            dict(zip("2345", features, strict=True)), rows, [(800, 1344)] * 2
        )
    five = torch.cat([image_index[:, None].to(dtype), rois.to(dtype)], 1)
    if name == "roi_pool":
        return lambda features: operators.roi_pool(*features, five, 7, 0.25)
    return lambda features: operators.roi_align(*features, five, 7, 0.25, 2, True)


def suppression(operator, device) -> Case:
    """Per-level NMS of 4 * 1000 proposals. Whole-pixel boxes: no IoU lies within float32's reach of the threshold."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(4000, 800, 1344, 8, 200, generator).round().to(device)
    scores = torch.rand(4000, generator=generator).to(device)
    group = (torch.arange(4000) // 1000).to(device)
    operators = _torchvision("ops")
    return Case(
        *(operator, "4 x 1000 boxes, IoU 0.7", torch.float32, ""),
        ours=lambda backend: partial(nms.batched_nms, boxes, scores, group, 0.7, backend=backend),
        oracle=partial(
            nms.batched_nms, boxes.double(), scores.double(), group, 0.7, backend="torch"
        ),
        tolerance=0.0,
        peer=operators and partial(operators.batched_nms, boxes, scores, group, 0.7),
    )


def whole_model(operator, dtype, device) -> Case:
    """A training step (forward and backward), or inference up to 28x28 masks: R50-FPN on a GPU, `tiny` on a CPU."""
    gpu, training = device.type == "cuda", operator == "training_step"
    config, height, width = (
        (preset("torchvision_r50_fpn"), 800, 1344) if gpu else (preset("tiny"), 128, 128)
    )
    batch = random_batch(config, 2, height, width).to(device)
    torch.manual_seed(0)
    model = MaskRCNN(config).to(device).train(training)
    generator = torch.Generator().manual_seed(0)
    anchors = 3 * sum(-(-height // s) * -(-width // s) for s in (4, 8, 16, 32, 64))
    widths = {"rpn": anchors, "roi": config.rpn.post_nms_top_n_train + batch.boxes.shape[1]}
    priorities = {
        name: torch.rand(2, width, generator=generator).to(device) for name, width in widths.items()
    }

    def call(model, batch, dtype):
        with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
            if not training:
                return model.batch_detections(batch).scores
            losses = torch.stack(list(model.batch_losses(batch, priorities).values()))
        model.zero_grad()
        losses.sum().backward()
        return losses.detach()

    def ours(backend):
        model.backend = backend
        return partial(call, model, batch, dtype)

    def oracle():
        double = copy.deepcopy(model).double()
        double.backend = "torch"
        return call(
            double,
            replace(batch, images=batch.images.double(), boxes=batch.boxes.double()),
            torch.float64,
        )

    shape = f"{'R50-FPN' if gpu else 'tiny'} 2x{height}x{width}"
    return Case(
        operator,
        shape,
        dtype,
        "",
        ours,
        oracle,
        equality.MODEL_RERANKED[str(dtype).removeprefix("torch.")],
        _peer_model(training, batch, dtype) if gpu else None,
    )


def _peer_model(training, batch, dtype):
    """The same of torchvision's R50-FPN, from random weights; None where it does not import."""
    detection = _torchvision("models.detection")
    if detection is None:
        return None
    device, width = batch.images.device, batch.images.shape[3]
    model = (
        detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        .to(device)
        .train(training)
    )
    masks = torch.from_numpy(np.unpackbits(batch.masks.cpu().numpy(), axis=-1, count=width)).to(
        device
    )
    rows = zip(batch.boxes, batch.labels, masks, strict=True)
    targets = [{"boxes": boxes, "labels": labels, "masks": mask} for boxes, labels, mask in rows]

    def call():
        with (
            torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16),
            torch.set_grad_enabled(training),
        ):
            out = model(list(batch.images.sigmoid()), targets if training else None)
        if training:
            model.zero_grad()
            sum(out.values()).backward()

    return call


def random_batch(config, count, height, width, objects=8) -> Batch:
    """Noise with rectangles to find, of the size the network sees."""
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(
        count * objects, height, width, height / 16, height / 2, generator
    ).reshape(count, objects, 4)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    x1, y1, x2, y2 = boxes[..., None, None].unbind(2)
    masks = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).numpy()
    return Batch(
        images=torch.randn(count, 3, height, width, generator=generator),
        sizes=torch.tensor([[height, width]] * count),
        boxes=boxes,
        labels=torch.randint(1, config.num_classes + 1, (count, objects), generator=generator),
        valid=torch.ones(count, objects, dtype=torch.bool),
        masks=torch.from_numpy(np.packbits(masks, axis=-1)),
        original_sizes=[(height, width)] * count,
        image_ids=list(range(count)),
    )


def random_boxes(count, height, width, low, high, generator):
    """[count, 4] float32 xyxy inside the image, sides log-uniform in [low, high] pixels."""
    size = low * (high / low) ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - size)
    return torch.cat([corner, corner + size], 1)


def numpy_beside_torch(seconds, only="") -> Iterator[dict]:
    """In float32 on this CPU's threads, NumPy's time, PyTorch's, and NumPy's over PyTorch's: `detect`, and training steps with the
    resident memory that they add to a process of their own."""
    rows = [("detect", "torchvision_r50_fpn", 1, 800, 1333), ("training_step", "tiny", 4, 128, 128)]
    for operator, name, *shape in [*rows, ("training_step", "torchvision_r50_fpn", 1, 320, 480)]:
        if only not in operator:
            continue
        facts = {
            "operator": operator,
            "shape": f"{name} {'x'.join(map(str, shape))}",
            "dtype": "float32",
            "layout": "nchw",
        }
        measured = {
            backend: in_a_process(_time_alone, operator, name, shape, backend, seconds)
            for backend in ("torch", "numpy")
        }
        yield {**facts, "backend": "torch", **measured["torch"]}
        ratio = measured["numpy"]["p50_ms"] / measured["torch"]["p50_ms"]
        yield {**facts, "backend": "numpy", **measured["numpy"], "times_torch": round(ratio, 2)}


def _time_alone(operator, name, shape, backend, seconds):
    """What one of these calls takes; in a process of its own."""
    from accelerated.verify import detection, training

    torch.manual_seed(0)
    config, (count, height, width) = preset(name), shape
    still = replace(config.optimizer, learning_rate=0.0)  # every step is the first one
    config = replace(config, transform=replace(config.transform, min_size=()), optimizer=still)
    images = list(
        np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    )
    batch = random_batch(config, count, height, width)
    masks = np.unpackbits(batch.masks.numpy(), axis=-1, count=width).astype(bool)
    targets = [
        Target(*(x.numpy() for x in (boxes, labels)), mask)
        for boxes, labels, mask in zip(batch.boxes, batch.labels, masks, strict=True)
    ]
    model = MaskRCNN(config).train(operator != "detect")
    if operator == "detect":
        call = partial(
            (model if backend == "torch" else detection.reference_model(model, "float32")).detect,
            images,
        )
    elif backend == "torch":
        call = partial(
            _training_step, model, optimizer.build(model, config.optimizer), images, targets
        )
    else:
        call = partial(training.reference_step(model, "float32"), images, targets)
    before, _ = memory_mb()
    times = quantiles(call, torch.device("cpu"), seconds)
    return times | {"memory_mb": round(memory_mb()[1] - before)}


def _training_step(model, updates, images, targets):
    losses = model.losses(images, targets)
    updates.zero_grad()
    sum(losses.values()).backward()
    optimizer.step(
        updates, model.config.optimizer.learning_rate, model.config.optimizer.clip_gradient_norm
    )


def environment(device) -> dict:
    """What every row says about where it was measured."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = {
        name: getattr(importlib.import_module(name), "__version__", "") if _imports(name) else None
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
    try:
        here = Path(__file__).parent
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        return git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MASKRCNN_COMMIT", "")


def _imports(name):
    try:
        importlib.import_module(name)
        return True
    except Exception:
        return False


def _torchvision(part):
    return importlib.import_module(f"torchvision.{part}") if _imports("torchvision") else None


def report(output, device="auto", seconds=0.5, only="", model=False) -> int:
    """Time everything, print a line per row, append the rows to OUTPUT/<device>.jsonl. Returns 1 if a result was wrong, else 0."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device, failed = torch.device(device), 0
    path = Path(output) / f"{device.type}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"{'operator':27} {'backend':11} {'dtype':9} {'layout':14} {'p20 ms':>10} {'p50 ms':>10} {'p80 ms':>10} {'x peer':>7}  shape"
    )
    with path.open("a") as file:
        for row in run(device, seconds=seconds, only=only, model=model):
            failed += "failed" in row
            times = (
                row.get("failed")
                or " ".join(f"{row[f'p{q}_ms']:10.3f}" for q in (20, 50, 80))
                + f" {row.get('peer_ratio') or '':>7}"
            )
            memory = f", {row['memory_mb']} MB" if "memory_mb" in row else ""
            print(
                f"{row['operator']:27} {row['backend']:11} {row['dtype']:9} {row['layout']:14} {times}  {row['shape']}{memory}",
                flush=True,
            )
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(
        f"appended to {path}" + (f"; {failed} results were wrong and not timed" if failed else "")
    )
    return 1 if failed else 0


def main(arguments=None) -> int:
    """`python -m accelerated.experiments.benchmark`: prints a line per row and appends the rows to OUTPUT/<device>.jsonl; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(
        prog="maskrcnn benchmark",
        description="Times of operators, of a training step and of inference.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results"), help="folder of the JSON lines"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each timing")
    parser.add_argument("--only", default="", help="only operators whose name holds this")
    parser.add_argument(
        "--model",
        action="store_true",
        help="also whole models and training steps, NumPy beside PyTorch",
    )
    options = parser.parse_args(arguments)
    return report(**vars(options))


if __name__ == "__main__":
    sys.exit(main())
