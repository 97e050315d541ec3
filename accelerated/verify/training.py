"""Compare a training step in NumPy, PyTorch and Triton, or whole runs in NumPy and PyTorch.

All implementations get the same weights, images and sampling priorities. In float64 they choose the
same candidates.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch

from accelerated import interop
from accelerated import optimizer as torch_optimizer
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Target
from accelerated.verify.detection import (
    BACKENDS,
    comparison,
    converted,
    reference_model,
    unavailable,
)
from accelerated.verify.equality import MODEL, difference
from accelerated.verify.report import Report, Row
from reference import mask_rcnn as oracle
from reference import optimizer as oracle_optimizer
from reference import parameters as oracle_parameters
from reference import train as oracle_train
from reference.config import Config
from reference.structures import Target as OracleTarget

Arrays = Mapping[str, np.ndarray]


def compare(
    model: MaskRCNN,
    images: Iterable[np.ndarray],
    targets: Iterable[Any],
    *,
    dtype: str = "float64",
    rois: int | None = None,
    seed: int = 0,
) -> Report:
    """Compare losses, gradients and new weights of one training step in the three implementations.

    model    on any device; it is not changed. Its configuration names the optimizer, which starts
             without momentum and at the full learning rate for this number of images (warm-up would
             hide the update in rounding)
    images   the batch: [H, W, 3] RGB in 0..255 each
    targets  anything with boxes, labels, masks and polygons for each image, arrays or tensors
    dtype    "float64" or "float32"; in float32 rounding may sample another candidate
    rois     limit on the proposals and sampled RoIs of an image (an interpreted kernel takes a
             second for each); None: the configuration's
    seed     of the sampling priorities

    The first step of AdamW divides each gradient by its magnitude, so that a gradient of mere
    rounding moves a weight as far as any other. In float32 NumPy's gradients therefore update all
    weights: the new ones differ by the optimizers alone, and the title says so.
    The values of the rows are the losses, the L2 norms of the gradients before clipping, and the L2
    norms of the changes of the weights.
    Raises ValueError for another dtype.
    """
    model = converted(model, dtype)
    if rois is not None:
        model.config = _limited(model.config, rois)
    images, targets = list(images), [_arrays(target) for target in targets]
    optimizer, before = model.config.optimizer, interop.parameters(model, getattr(np, dtype))
    rate = optimizer.learning_rate * len(images) / optimizer.batch_size
    reference, generator = reference_model(model, dtype), np.random.default_rng(seed)
    expected = oracle_train.step(
        reference, images, targets, oracle_optimizer.State(), rate, generator=generator
    )
    steps = {"NumPy": _Step(expected.losses, expected.gradients, reference.parameters)}
    share_gradients = optimizer.kind == "adamw" and dtype == "float32"
    update = expected.gradients if share_gradients else None
    skipped = unavailable(model)
    backends = [name for name in BACKENDS if name not in skipped]
    for backend in backends:
        subject = converted(model, dtype)
        subject.backend = backend
        fused = torch_optimizer.build(subject, optimizer)
        losses, gradients = step(subject, fused, images, targets, rate, expected.priorities, update)
        _check_trained(backend, gradients, expected.gradients)
        parameters = interop.parameters(subject, getattr(np, dtype))
        steps[backend] = _Step(losses, gradients, parameters)

    def rows(field: str, names: Iterable[str], relative_to: Arrays | None = None) -> list[Row]:
        values = {side: getattr(result, field) for side, result in steps.items()}
        return [_row(name, values, relative_to, MODEL[dtype]) for name in names]

    weights = [
        name for name in before if name in expected.gradients or _changed(name, steps, before)
    ]
    sections = {
        "losses": rows("losses", expected.losses),
        "gradients": rows("gradients", expected.gradients),
        "new weights": rows("parameters", weights, relative_to=before),
    }
    title = f"{comparison(model, backends)}, {dtype}, {_count(targets)}; {optimizer.kind}"
    title += f", learning rate {rate:g}"
    if share_gradients:
        title += ", all by NumPy's gradients"
    return Report(title, sections, skipped)


def step(
    model: MaskRCNN,
    optimizer: torch.optim.Optimizer,
    images: list[np.ndarray],
    targets: list,
    rate: float,
    priorities: Any,
    update: Arrays | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Take one training step of the accelerated model, like `reference.train.step`.

    update  {parameter: gradient} to update by, instead of the step's gradients
    Returns {loss: scalar array} and {parameter: gradient before clipping}.
    """
    with torch.backends.cudnn.flags(allow_tf32=False):
        losses = model.losses(images, targets, priorities)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
    gradients = {
        name: parameter.grad.numpy(force=True).copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for name, gradient in (update or {}).items():
        parameter = model.get_parameter(name)
        # A copy, as clipping works in place.
        parameter.grad = torch.from_numpy(gradient).to(parameter, copy=True)
    torch_optimizer.step(optimizer, rate, model.config.optimizer.clip_gradient_norm)
    return {name: loss.numpy(force=True) for name, loss in losses.items()}, gradients


def reference_step(model: MaskRCNN, dtype: str = "float64") -> Callable[..., oracle_train.Step]:
    """Return a function of (images, targets) that takes a training step with the reference.

    The steps start from the weights of the accelerated `model`.
    """
    reference, rate = reference_model(model, dtype), model.config.optimizer.learning_rate

    def take(images: list[np.ndarray], targets: list[OracleTarget]) -> oracle_train.Step:
        return oracle_train.step(reference, images, targets, oracle_optimizer.State(), rate)

    return take


def own_targets(model: MaskRCNN, images: list[np.ndarray], threshold: float = 0.5) -> list[Target]:
    """Detect objects in the images, to serve as ground truth; `threshold` is the minimum score.

    Without a mask branch their masks are empty, and no loss reads them.
    """
    targets = []
    for image, detections in zip(images, model.detect(images), strict=True):
        keep = detections.scores >= threshold
        keep &= (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(1)
        masks = detections.masks
        if masks is None:
            masks = keep.new_zeros(len(keep), *image.shape[:2])
        targets.append(Target(detections.boxes[keep], detections.labels[keep], masks[keep]))
    return targets


@dataclass(frozen=True)
class Pair:
    """One training step of both implementations: {loss: value} of each, and the seconds it took."""

    iteration: int
    numpy: dict[str, float]
    torch: dict[str, float]
    numpy_seconds: float
    torch_seconds: float

    @property
    def difference(self) -> float:
        """The largest relative difference of a loss."""
        return max(
            difference(self.torch[name], value).relative for name, value in self.numpy.items()
        )


def train(
    config: Config,
    iterations: int,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    device: torch.device | str = "cpu",
) -> Iterator[Pair]:
    """Train in NumPy and in PyTorch from the same weights on the same batches of shapes.

    NumPy draws the weights and the sampling priorities; PyTorch gets both as arrays.
    Yields every step.
    """
    generator = np.random.default_rng(seed)
    reference = oracle.MaskRCNN(
        config, oracle_parameters.initial_parameters(config, generator, getattr(np, dtype))
    )
    model = MaskRCNN(config).to(device, getattr(torch, dtype)).train()
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value)) for name, value in reference.parameters.items()},
        strict=False,
    )
    optimizer = torch_optimizer.build(model, config.optimizer)
    shapes = oracle_train.shape_batches(seed, batch_size or config.optimizer.batch_size)
    batches, repeated = tee(shapes)
    steps = oracle_train.train(reference, batches, iterations=iterations, generator=generator)
    for iteration, (images, targets) in zip(range(iterations), repeated, strict=False):
        start = time.perf_counter()
        expected = next(steps)
        between = time.perf_counter()
        rate = torch_optimizer.learning_rate(config.optimizer, iteration, iterations, len(images))
        losses, _ = step(model, optimizer, images, targets, rate, expected.priorities)
        end = time.perf_counter()
        numpy, torch_ = _floats(expected.losses), _floats(losses)
        yield Pair(iteration + 1, numpy, torch_, between - start, end - between)


class _Step(NamedTuple):
    """One implementation's training step; `parameters` are the weights and statistics after it."""

    losses: Mapping[str, Any]
    gradients: Mapping[str, Any]
    parameters: Mapping[str, Any]


def _row(name, values, relative_to, tolerance):
    """Compare one loss or parameter.

    values       {implementation: {name: array}}
    relative_to  {name: array} that the shown norms are distances from, or None for 0
    """
    arrays = {side: np.asarray(of_side[name]) for side, of_side in values.items()}
    origin = 0.0 if relative_to is None else relative_to[name]
    norms = {side: float(np.linalg.norm(array - origin)) for side, array in arrays.items()}
    expected = arrays.pop("NumPy")
    differences = {side: difference(array, expected) for side, array in arrays.items()}
    return Row(name, " ".join(map(str, expected.shape)), differences, tolerance, norms)


def _changed(name, steps, before):
    """Whether any implementation changed a weight or a running statistic."""
    return any(
        not np.array_equal(result.parameters[name], before[name]) for result in steps.values()
    )


def _count(targets):
    objects = sum(len(target.labels) for target in targets)
    return f"{len(targets)} image{'s' * (len(targets) != 1)} with {objects} objects"


def _check_trained(backend, gradients, expected):
    differing = sorted(gradients.keys() ^ expected.keys())
    if differing:
        raise RuntimeError(
            f"NumPy and {backend} do not train the same parameters:"
            f" {', '.join(differing[:8])} on one side only"
        )


def _limited(config, count):
    """Limit the proposals and sampled RoIs of an image to `count`, at least one for an object."""
    head, rpn = config.box_head, config.rpn
    head = replace(
        head,
        batch_size=min(count, head.batch_size),
        positive_fraction=max(head.positive_fraction, 1 / count),
    )
    rpn = replace(rpn, post_nms_top_n_train=min(count, rpn.post_nms_top_n_train))
    return replace(config, rpn=rpn, box_head=head)


def _arrays(target):
    def array(x):
        return x.numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x)

    masks = array(target.masks)
    return OracleTarget(array(target.boxes), array(target.labels), masks, target.polygons)


def _floats(losses):
    return {name: float(value) for name, value in losses.items()}
