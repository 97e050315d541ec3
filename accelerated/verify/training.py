"""Training where both implementations meet: one step through NumPy, PyTorch and Triton, number by number; a run of NumPy beside PyTorch.

The same weights, images and sampling priorities on every side. In float64 every choice between candidates falls the same way.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import tee

import numpy as np
import torch

from accelerated import interop
from accelerated import optimizer as optim
from accelerated.mask_rcnn import MaskRCNN
from accelerated.verify.detection import (
    BACKENDS,
    TOLERANCE,
    Report,
    Row,
    beside,
    converted,
    difference,
    reference_model,
    unavailable,
)
from reference import mask_rcnn as oracle
from reference import optimizer as oracle_optimizer
from reference import parameters as reference_parameters
from reference import train as oracle_train
from reference.structures import Target


def compare(model, images, targets, *, dtype="float64", rois=None, seed=0) -> Report:
    """One training step with the three implementations: the losses, the gradient of every parameter and what it becomes.

    model            accelerated.mask_rcnn.MaskRCNN on any device; it is left as it is. Its configuration names the optimizer, which starts
                     afresh, at the full learning rate for as many images: no warm-up, which would hide the update in rounding
    images, targets  one batch: list of [H, W, 3] RGB in 0..255, and of anything with boxes, labels and masks, arrays or tensors
    dtype            "float64" or "float32"; as in `verify.compare`, in float32 rounding may sample another candidate
    rois             at most so many proposals, and RoIs to learn from, of each image, all three alike (an interpreted kernel takes a
                     second for each); None: the configuration's
    seed             of the sampling priorities
    AdamW's first step divides each gradient by its own size, so that what was only rounding moves a weight as far as any other: in float32
    it is NumPy's gradients that update all the weights, so that the new ones differ by the optimizers alone, and the title says so.
    The rows' values are the losses, the L2 norms of the gradients before clipping, and those of what the weights changed by.
    """
    model = converted(model, dtype)
    if rois is not None:
        model.config = _limited(model.config, rois)
    images, targets = list(images), [_arrays(target) for target in targets]
    settings, before = model.config.optimizer, interop.parameters(model, np.dtype(dtype))
    rate = settings.learning_rate * len(images) / settings.batch_size
    reference = reference_model(model, dtype)
    generator = np.random.default_rng(seed)
    taken = oracle_train.step(
        reference, images, targets, oracle_optimizer.State(), rate, generator=generator
    )
    shared = taken.gradients if settings.kind == "adamw" and dtype == "float32" else None
    sides = {"NumPy": (taken.losses, taken.gradients, reference.parameters)}
    skipped = unavailable(model)
    for backend in (name for name in BACKENDS if name not in skipped):
        own = converted(model, dtype)
        own.backend = backend
        losses, gradients = step(
            own, optim.build(own, settings), images, targets, rate, taken.priorities, shared
        )
        if odd := gradients.keys() ^ taken.gradients.keys():
            raise RuntimeError(
                f"NumPy and {backend} do not train the same parameters: {', '.join(sorted(odd)[:8])} on one side only"
            )
        sides[backend] = losses, gradients, interop.parameters(own, np.dtype(dtype))
    changed = {
        name
        for *_, new in sides.values()
        for name in new
        if not np.array_equal(new[name], before[name])
    }  # statistics, too
    names = (
        taken.losses,
        taken.gradients,
        [name for name in before if name in changed | taken.gradients.keys()],
    )
    sections = {
        section: [
            _row(
                name,
                {side: values[place][name] for side, values in sides.items()},
                origin.get(name, 0.0),
                TOLERANCE[dtype],
            )
            for name in names[place]
        ]
        for place, (section, origin) in enumerate(
            (("losses", {}), ("gradients", {}), ("new weights", before))
        )
    }
    count = f"{len(images)} image{'s' * (len(images) != 1)} with {sum(len(t.labels) for t in targets)} objects"
    update = f"{settings.kind}, learning rate {rate:g}" + (
        ", all by NumPy's gradients" if shared else ""
    )
    return Report(
        f"{beside(model, list(sides)[1:])}, {dtype}, {count}; {update}", sections, skipped
    )


def step(model, optimizer, images, targets, rate, priorities, update=None):
    """`reference.train.step`, accelerated: ({loss: scalar array}, {parameter: gradient before clipping}); the weights are updated.

    update  {parameter: array} to update by, where it should not be those gradients
    """
    with torch.backends.cudnn.flags(allow_tf32=False):
        losses = model.losses(images, targets, priorities)
        optimizer.zero_grad()
        sum(losses.values()).backward()
    gradients = {
        name: p.grad.numpy(force=True).copy()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    for name, gradient in (update or {}).items():
        parameter = model.get_parameter(name)
        parameter.grad = torch.from_numpy(gradient).to(
            parameter, copy=True
        )  # clipping works in place
    optim.step(optimizer, rate, model.config.optimizer.clip_gradient_norm)
    return {name: loss.numpy(force=True) for name, loss in losses.items()}, gradients


def reference_step(model, dtype="float64"):
    """A function of (images, targets) that takes a step of training with the reference, from the weights of the accelerated `model`."""
    reference, rate = reference_model(model, dtype), model.config.optimizer.learning_rate
    return lambda images, targets: oracle_train.step(
        reference, images, targets, oracle_optimizer.State(), rate
    )


def own_targets(model, images, threshold=0.5):
    """What the model itself finds in the images, from the score `threshold` on, in the place of ground truths.

    Without a mask branch nobody reads their masks, which are empty.
    """
    targets = []
    for image, found in zip(images, model.detect(images), strict=True):
        keep = (found.scores >= threshold) & (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
        masks = keep.new_zeros(len(keep), *image.shape[:2]) if found.masks is None else found.masks
        targets.append(Target(found.boxes[keep], found.labels[keep], masks[keep]))
    return targets


@dataclass(frozen=True)
class Pair:
    """One training step of both implementations: the losses {name: number} and the seconds it took."""

    iteration: int
    numpy: dict[str, float]
    torch: dict[str, float]
    numpy_seconds: float
    torch_seconds: float

    @property
    def difference(self):
        """The largest of the five losses', relative to NumPy's."""
        return max(
            abs(self.torch[name] - value) / (abs(value) or 1.0)
            for name, value in self.numpy.items()
        )


def train(
    config, iterations, *, batch_size=None, seed=0, dtype="float64", device="cpu"
) -> Iterator[Pair]:
    """Train twice from the same random weights on the same batches of shapes: NumPy alone, and PyTorch; yields each step.

    NumPy draws the weights and the sampling priorities; all that the two share is handed over as arrays.
    """
    generator = np.random.default_rng(seed)
    reference = oracle.MaskRCNN(
        config, reference_parameters.initial_parameters(config, generator, np.dtype(dtype))
    )
    model = MaskRCNN(config).to(device, getattr(torch, dtype)).train()
    model.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in reference.parameters.items()},
        strict=False,
    )
    optimizer = optim.build(model, config.optimizer)
    batches, same = tee(oracle_train.shape_batches(seed, batch_size or config.optimizer.batch_size))
    steps = oracle_train.train(reference, batches, iterations=iterations, generator=generator)
    for iteration, (images, targets) in zip(range(iterations), same, strict=False):
        start = time.perf_counter()
        taken = next(steps)
        between = time.perf_counter()
        rate = optim.learning_rate(config.optimizer, iteration, iterations, len(images))
        losses, _ = step(model, optimizer, images, targets, rate, taken.priorities)
        sides = (
            {name: float(value) for name, value in side.items()} for side in (taken.losses, losses)
        )
        yield Pair(iteration + 1, *sides, between - start, time.perf_counter() - between)


def _row(name, sides, origin, tolerance):
    """One loss or parameter; `sides` {implementation: array}. Its values are the norms of the distances from `origin`."""
    expected = np.asarray(sides["NumPy"])
    differences = {
        side: difference(value, expected) for side, value in sides.items() if side != "NumPy"
    }
    values = {side: float(np.linalg.norm(value - origin)) for side, value in sides.items()}
    return Row(name, " ".join(map(str, expected.shape)), differences, tolerance, values)


def _limited(config, count):
    """At most `count` proposals and sampled RoIs of an image; room for one object at least."""
    head, rpn = config.box_head, config.rpn
    head = replace(
        head,
        batch_size=min(count, head.batch_size),
        positive_fraction=max(head.positive_fraction, 1 / count),
    )
    return replace(
        config,
        rpn=replace(rpn, post_nms_top_n_train=min(count, rpn.post_nms_top_n_train)),
        box_head=head,
    )


def _arrays(target):
    values = (target.boxes, target.labels, target.masks)
    return Target(
        *(x.numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x) for x in values)
    )
