"""The one room where both implementations meet: the same weights and the same image through NumPy, PyTorch and Triton, stage by stage.

In float64 every choice between candidates falls the same way, so that the stages can be compared one after the other to the end.
"""

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from accelerated import backend as backends
from accelerated import interop, rpn
from accelerated.structures import Stages
from reference import mask_rcnn as oracle
from reference import rpn as oracle_rpn
from reference import structures as oracle_structures

BACKENDS = ("torch", "triton")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # of max|a - r| / max|r|, with r from NumPy
EXACT = ("labels", "masks")  # discrete results: not one entry may differ
MASKS = ("mask_features", "mask_logits")  # recorded where there is a mask branch


@dataclass(frozen=True)
class Difference:
    relative: float  # max|a - r| / max|r|; infinite where the shapes differ
    absolute: float  # max|a - r|
    wrong: int  # entries that differ at all
    note: str = ""  # why they cannot be compared


@dataclass(frozen=True)
class Row:
    name: str  # of the stage, loss or parameter
    shape: str
    differences: dict[str, Difference]  # by backend
    tolerance: float
    values: dict[str, float] = field(
        default_factory=dict
    )  # by implementation: one number to look at

    @property
    def passed(self):
        return all(d.relative <= self.tolerance for d in self.differences.values())

    @property
    def verdict(self):
        """ "ok", or what is wrong."""
        if self.passed:
            return "ok" if self.tolerance or not self.differences else "equal"
        worst = max(self.differences.values(), key=lambda d: d.relative)
        return worst.note or (
            f"differs > {self.tolerance:g}" if self.tolerance else f"{worst.wrong} entries differ"
        )

    def text(self, backend):
        difference = self.differences.get(backend)
        return "-" if difference is None or difference.note else f"{difference.relative:.1e}"

    @property
    def largest(self):
        """The largest absolute difference of any backend."""
        return f"{max((d.absolute for d in self.differences.values()), default=0.0):.1e}"


@dataclass(frozen=True)
class Report:
    title: str
    sections: dict[str, list[Row]]  # by what the rows are: "stages", "gradients", ...
    skipped: dict[str, str]  # backend: why it did not run

    @property
    def rows(self):
        return [row for rows in self.sections.values() for row in rows]

    @property
    def passed(self):
        return all(row.passed for row in self.rows)

    @property
    def summary(self):
        who = f"NumPy and {' and '.join(name for name in BACKENDS if name not in self.skipped)}"
        if self.passed:
            return f"{who} agree in all {self._counted(lambda row: True)}."
        first = next(row for row in self.rows if not row.passed)
        return f"{who} differ in {self._counted(lambda row: not row.passed)}, first in {first.name}: {first.verdict}"

    def _counted(self, wanted):
        counts = {name: sum(map(wanted, rows)) for name, rows in self.sections.items()}
        *most, last = (f"{count} {name}" for name, count in counts.items() if count)
        return f"{', '.join(most)} and {last}" if most else last


def compare(model, image, *, dtype="float64", proposals=None) -> Report:
    """Detect with the three implementations and set their stages side by side.

    model      accelerated.mask_rcnn.MaskRCNN on any device; it is left as it is
    image      [H, W, 3] RGB, 0..255
    dtype      "float64" or "float32", for weights and arithmetic. In float32 rounding may rank two candidates the other way,
               and all that comes after is then different
    proposals  at most so many proposals and detections, all three alike (interpreted kernels take half a second for each); None: all
    A backend that cannot run here is left out, with its reason in the report. ValueError for another dtype.
    """
    model, record = converted(model, dtype).eval(), oracle_structures.Stages()
    if proposals is not None:
        model.config = _limited(model.config, proposals)
    expected = _reference_stages(
        record, reference_model(model, dtype).detect([image], record=record)[0]
    )
    found, skipped = {}, unavailable(model)
    for name in (name for name in BACKENDS if name not in skipped):
        model.backend, record = name, Stages()
        with torch.backends.cudnn.flags(allow_tf32=False):
            detections = model.detect([image], record=record)[0]
        found[name] = _accelerated_stages(record, detections)
    rows = [
        Row(
            stage,
            " ".join(map(str, value.shape)),
            {name: difference(stages[stage], value) for name, stages in found.items()},
            0.0 if stage in EXACT else TOLERANCE[dtype],
        )
        for stage, value in expected.items()
    ]
    return Report(
        f"{beside(model, found)}, {dtype}, image {image.shape[1]}x{image.shape[0]}",
        {"stages": rows},
        skipped,
    )


def converted(model, dtype):
    """A copy of the accelerated `model` that computes in `dtype`; ValueError for one that there is no tolerance for."""
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype {dtype}: expected {' or '.join(TOLERANCE)}")
    return copy.deepcopy(model).to(getattr(torch, dtype))


def unavailable(model):
    """{backend: why it cannot run} where the model's weights are."""
    reasons = {}
    for name in BACKENDS:
        try:
            backends.resolve(name, next(model.parameters()))
        except RuntimeError as error:
            reasons[name] = str(error)
    return reasons


def beside(model, names):
    """Who is compared and where, for a title."""
    return "NumPy beside " + " and ".join(
        f"{name} on {next(model.parameters()).device}" for name in names
    )


def reference_model(model, dtype="float64"):
    """reference.mask_rcnn.MaskRCNN with the weights of the accelerated `model`."""
    return oracle.MaskRCNN(model.config, interop.parameters(model, np.dtype(dtype)))


def difference(actual, expected) -> Difference:
    """How far `actual` is from `expected`; NaN on one side alone counts as infinitely far."""
    if actual.shape != expected.shape:
        return Difference(
            np.inf, np.inf, 0, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        )
    a, r = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == r) | (np.isnan(a) & np.isnan(r))
    if same.all():
        return Difference(0.0, 0.0, 0)
    absolute = np.nan_to_num(np.abs(a - r)[~same], nan=np.inf, posinf=np.inf).max()
    scale = np.abs(r[np.isfinite(r)]).max(initial=0.0)
    return Difference(float(absolute / (scale or 1.0)), float(absolute), int((~same).sum()))


def _limited(config, count):
    rpn_config = replace(config.rpn, post_nms_top_n_test=min(count, config.rpn.post_nms_top_n_test))
    return replace(
        config,
        rpn=rpn_config,
        box_head=replace(
            config.box_head, max_detections=min(count, config.box_head.max_detections)
        ),
    )


def _reference_stages(record, detections):
    """{stage: array} of one image, from what the reference recorded."""
    stages = {name: getattr(record, name) for name in _feature_names(record)}
    stages["rpn_logits"], stages["rpn_deltas"] = oracle_rpn.flatten(
        record.rpn_logits, record.rpn_deltas
    )
    stages["anchors"] = np.concatenate(record.anchors)
    stages |= {"proposals": record.proposals[0], "proposal_scores": record.proposal_scores[0]}
    stages |= {
        name: getattr(record, name)
        for name in ("box_features", "class_logits", "box_deltas", *MASKS)
        if name in record.computed()
    }
    return stages | _final(detections)


def _accelerated_stages(record, detections):
    """The same from the accelerated record: flattened, and without the padding."""
    stages = {name: getattr(record, name) for name in _feature_names(record)}
    stages["rpn_logits"], stages["rpn_deltas"] = rpn.flatten(record.rpn_logits, record.rpn_deltas)
    stages["anchors"] = torch.cat(record.anchors)
    valid, found = record.proposal_valid[0], record.detections.valid[0]
    stages |= {name: getattr(record, name)[0][valid] for name in ("proposals", "proposal_scores")}
    stages |= {
        name: getattr(record, name)[valid]
        for name in ("box_features", "class_logits", "box_deltas")
    }
    stages |= {name: getattr(record, name)[found] for name in MASKS if name in record.computed()}
    return {
        name: value.detach().cpu().numpy() for name, value in (stages | _final(detections)).items()
    }


def _feature_names(record):
    return [
        "images",
        *sorted(name for name in record.computed() if name[0] in "CP" and name[1:].isdigit()),
    ]


def _final(detections):
    values = {name: getattr(detections, name) for name in ("boxes", "scores", "labels", "masks")}
    return {name: value for name, value in values.items() if value is not None}
