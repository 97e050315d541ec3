"""Compare detection in NumPy, PyTorch and Triton stage by stage, on the same weights and image.

In float64 all implementations choose the same candidates, so that every stage can be compared.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from accelerated import backend as backends
from accelerated import interop, rpn
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Stages
from accelerated.verify.equality import MODEL, difference
from accelerated.verify.report import Report, Row
from reference import mask_rcnn as oracle
from reference import rpn as oracle_rpn
from reference.structures import Stages as OracleStages

BACKENDS = ("torch", "triton")
DTYPES = ("float64", "float32")
# Discrete results, which must be exactly equal.
EXACT = ("labels", "masks")


def compare(
    model: MaskRCNN, image: np.ndarray, *, dtype: str = "float64", proposals: int | None = None
) -> Report:
    """Detect objects with the three implementations and compare their stages.

    model      on any device; it is not changed
    image      [H, W, 3] RGB, 0..255
    dtype      "float64" or "float32", for weights and arithmetic. In float32 rounding may rank two
               candidates differently, and then all later stages differ
    proposals  limit on the proposals and detections (an interpreted kernel takes half a second for
               each); None: the configuration's

    A backend that cannot run here is skipped, with the reason in the report.
    Raises ValueError for another dtype.
    """
    model, record = converted(model, dtype).eval(), OracleStages()
    if proposals is not None:
        model.config = _limited(model.config, proposals)
    detections = reference_model(model, dtype).detect([image], record=record)[0]
    expected = _reference_stages(record, detections)
    stages, skipped = {}, unavailable(model)
    for backend in [name for name in BACKENDS if name not in skipped]:
        model.backend, record = backend, Stages()
        with torch.backends.cudnn.flags(allow_tf32=False):
            detections = model.detect([image], record=record)[0]
        stages[backend] = _accelerated_stages(record, detections)
    rows = []
    for name, value in expected.items():
        differences = {side: difference(values[name], value) for side, values in stages.items()}
        tolerance = 0.0 if name in EXACT else MODEL[dtype]
        rows.append(Row(name, " ".join(map(str, value.shape)), differences, tolerance))
    size = f"{image.shape[1]}x{image.shape[0]}"
    title = f"{comparison(model, stages)}, {dtype}, image {size}"
    return Report(title, {"stages": rows}, skipped)


def converted(model: MaskRCNN, dtype: str) -> MaskRCNN:
    """Copy the model and convert it to `dtype`. Raises ValueError unless it is in DTYPES."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}: expected {' or '.join(DTYPES)}")
    return copy.deepcopy(model).to(getattr(torch, dtype))


def unavailable(model: MaskRCNN) -> dict[str, str]:
    """Return {backend: reason} of the backends that cannot run on the model's device."""
    reasons = {}
    for name in BACKENDS:
        try:
            backends.resolve(name, next(model.parameters()))
        except RuntimeError as error:
            reasons[name] = str(error)
    return reasons


def comparison(model: MaskRCNN, names: Iterable[str]) -> str:
    """Say which backends are compared, and on which device, for a title."""
    device = next(model.parameters()).device
    return "NumPy compared with " + " and ".join(f"{name} on {device}" for name in names)


def reference_model(model: MaskRCNN, dtype: str = "float64") -> oracle.MaskRCNN:
    """Make a reference model with the weights of the accelerated `model`."""
    return oracle.MaskRCNN(model.config, interop.parameters(model, getattr(np, dtype)))


def _limited(config, count):
    rpn, head = config.rpn, config.box_head
    rpn = replace(rpn, post_nms_top_n_test=min(count, rpn.post_nms_top_n_test))
    head = replace(head, max_detections=min(count, head.max_detections))
    return replace(config, rpn=rpn, box_head=head)


def _reference_stages(record, detections):
    """Return {stage: array} of one image, from the reference's Stages and Detections."""
    logits, deltas = oracle_rpn.flatten(record.rpn_logits, record.rpn_deltas)
    stages = record.computed() | {
        "rpn_logits": logits,
        "rpn_deltas": deltas,
        "anchors": np.concatenate(record.anchors),
        "proposals": record.proposals[0],
        "proposal_scores": record.proposal_scores[0],
    }
    return _compared(stages, detections)


def _accelerated_stages(record, detections):
    """Return {stage: array} of one image like `_reference_stages`, without the empty slots."""
    logits, deltas = rpn.flatten(record.rpn_logits, record.rpn_deltas)
    proposal, detection = record.proposal_valid[0], record.detections.valid[0]
    stages = record.computed() | {
        "rpn_logits": logits,
        "rpn_deltas": deltas,
        "anchors": torch.cat(record.anchors),
        "proposals": record.proposals[0][proposal],
        "proposal_scores": record.proposal_scores[0][proposal],
        "box_features": record.box_features[proposal],
        "class_logits": record.class_logits[proposal],
        "box_deltas": record.box_deltas[proposal],
    }
    if record.mask_logits is not None:
        stages["mask_features"] = record.mask_features[detection]
        stages["mask_logits"] = record.mask_logits[detection]
    compared = _compared(stages, detections)
    return {name: value.numpy(force=True) for name, value in compared.items()}


def _compared(stages, detections):
    """Replace the network's padded detections by the final ones."""
    skipped = ("proposal_valid", "detections", "mask_probabilities")
    stages = {name: value for name, value in stages.items() if name not in skipped}
    stages |= {"boxes": detections.boxes, "scores": detections.scores, "labels": detections.labels}
    if detections.masks is not None:
        stages["masks"] = detections.masks
    return stages
