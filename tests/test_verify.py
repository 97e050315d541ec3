"""Detection in three implementations: equal weights agree, and the first wrong stage is named."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from support import narrow

from accelerated import interop, mask_rcnn
from accelerated.verify import detection
from accelerated.verify.equality import difference
from accelerated.verify.report import Report, Row, check
from reference import shapes
from reference.config import preset

STAGES = [
    "images",
    "C2",
    "P6",
    "rpn_logits",
    "anchors",
    "proposals",
    "box_features",
    "class_logits",
    "mask_logits",
    "boxes",
    "labels",
    "masks",
]


@pytest.fixture(scope="module")
def model():
    """Narrow, with few proposals: interpreted kernels are slow."""
    config = preset("tiny")
    torch.manual_seed(0)
    return mask_rcnn.MaskRCNN(
        replace(
            config,
            norm_groups=4,
            transform=replace(config.transform, min_size=(64,), max_size=64),
            backbone=replace(config.backbone, width=8),
            fpn=replace(config.fpn, channels=8),
            rpn=replace(config.rpn, pre_nms_top_n_test=24),
            box_head=replace(config.box_head, channels=16),
            mask_head=replace(config.mask_head, convs=1, channels=8),
        )
    )


@pytest.fixture(scope="module")
def image():
    return shapes.sample(0, 0, height=64, width=64)[0]


def test_three_implementations_agree_in_every_stage(model, image):
    report = detection.compare(model, image, proposals=3)
    assert report.passed and not report.skipped, report.summary
    rows = {row.name: row for row in report.rows}
    assert set(STAGES) <= rows.keys()
    assert rows["proposals"].shape == "3 4"
    assert all(row.differences.keys() == {"torch", "triton"} for row in report.rows)
    assert rows["class_logits"].verdict == "ok" and rows["masks"].verdict == "equal"
    # The model is not changed.
    assert model.backend == "auto" and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "weight, first",
    [
        ("backbone.layer1.0.conv1.weight", "C2"),
        ("rpn.deltas.bias", "rpn_deltas"),
        ("mask_head.logits.bias", "mask_logits"),
    ],
)
def test_the_first_wrong_stage_is_named(model, image, weight, first, monkeypatch):
    exact = interop.parameters

    def spoilt(model, dtype):
        parameters = exact(model, dtype)
        return parameters | {weight: parameters[weight] + 1e-6}

    monkeypatch.setattr(detection.interop, "parameters", spoilt)
    monkeypatch.setattr(detection, "BACKENDS", ("torch",))
    report = detection.compare(model, image)
    assert not report.passed
    assert next(row.name for row in report.rows if not row.passed) == first
    assert f"first in {first}" in report.summary


def test_float32(model, image, monkeypatch):
    monkeypatch.setattr(detection, "BACKENDS", ("torch",))
    rows = {row.name: row for row in detection.compare(model, image, dtype="float32").rows}
    assert rows["C5"].passed and rows["C5"].differences["torch"].relative > 0
    with pytest.raises(ValueError, match="float64 or float32"):
        detection.compare(model, image, dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Triton runs")
def test_a_backend_that_cannot_run_is_skipped_with_its_reason(model, image, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    report = detection.compare(model, image)
    assert report.passed and "TRITON_INTERPRET=1" in report.skipped["triton"]
    assert report.rows[0].text("triton") == "-"


def test_discrete_results_are_counted():
    differences = {"torch": difference(np.array([1, 2]), np.array([1, 3]))}
    assert Row("labels", "3", differences, 0.0).verdict == "1 entries differ"


def test_a_report_counts_by_section():
    ok, bad = ({"torch": difference(np.array([value]), np.array([1.0]))} for value in (1.0, 2.0))
    rows = [
        Row(name, "1", differences, 1e-9)
        for name, differences in (("a", ok), ("b", bad), ("c", bad))
    ]
    report = Report(
        "title",
        {"losses": rows[:1], "gradients": rows[:2], "new weights": rows},
        {"triton": "no reason"},
    )
    assert not report.passed and report.summary.endswith(
        "differ in 1 gradients and 2 new weights, first in b: differs > 1e-09"
    )
    assert (
        Report("", {"losses": rows[:1]}, {"triton": ""}).summary
        == "NumPy and torch agree in all 1 losses."
    )


def test_check_builds_a_row(rng):
    oracle = rng.standard_normal((2, 3))
    results = {"torch": torch.from_numpy(oracle) + 1e-13, "triton": oracle.tolist()}
    row = check("P3", oracle, results, 1e-12)
    assert (row.name, row.shape, row.tolerance, row.verdict) == ("P3", "2 3", 1e-12, "ok")
    assert row.differences["torch"] == difference(results["torch"], oracle)
    assert row.differences["torch"].wrong == 6 and row.differences["triton"].wrong == 0
    # The values are norms: no entry of the array is shown.
    assert row.values.keys() == {"NumPy", "torch", "triton"}
    np.testing.assert_allclose(list(row.values.values()), np.sqrt((oracle**2).sum()), rtol=1e-11)
    assert check("labels", np.array([True]), {"torch": torch.tensor([1])}, 0).verdict == "equal"


def test_check_names_the_row_the_backend_the_tolerance_and_the_index():
    oracle = np.zeros((2, 3))
    oracle[0, 0] = 2.0
    wrong = oracle.copy()
    wrong[1, 2] = 1e-6
    with pytest.raises(AssertionError, match=r"^P3, triton, tolerance 1e-09: .* at \(1, 2\)"):
        check("P3", oracle, {"torch": oracle, "triton": wrong}, 1e-9)
    assert check("P3", oracle, {"triton": wrong}, 1e-6).passed


def test_check_with_tolerance_0_requires_equality():
    """Also where the relative difference of two numbers rounds to 0."""
    oracle, smallest = np.array([0.0, 8.0]), np.nextafter(0.0, 1.0)
    assert difference([smallest, 8.0], oracle).relative == 0
    with pytest.raises(AssertionError, match=r"labels, torch, tolerance 0: 1 .* at \(0,\)"):
        check("labels", oracle, {"torch": [smallest, 8.0]}, 0)


@pytest.mark.parametrize("tolerance", [0, 1e-9])
def test_check_fails_where_nothing_can_be_compared(tolerance):
    with pytest.raises(AssertionError, match=r"shape \[2\], expected \[1\]"):
        check("boxes", np.ones(1), {"torch": np.ones(2)}, tolerance)
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        check("boxes", np.ones(2), {"torch": np.array([1, np.nan])}, tolerance)
    with pytest.raises(ValueError, match="boxes: there is no backend"):
        check("boxes", np.ones(1), {}, tolerance)


def cells(report):
    """The cells of the table that a notebook shows, row by row."""
    rows = ElementTree.fromstring(f"<div>{report._repr_html_()}</div>").iter("tr")
    return [[cell.text or "" for cell in row] for row in rows]


def test_a_notebook_shows_a_report():
    oracle = np.array([3.0, 4.0])
    rows = [
        check("P3", oracle, {"torch": oracle + np.array([0, 1e-10])}, 1e-9),
        Row("kept", "2", {"triton": difference([0, 2], [0, 1])}, 0.0),
    ]
    report = Report.of("RoIAlign", rows)
    header, *body = cells(report)
    compared = ["NumPy", "NumPy - torch", "NumPy - triton"]
    assert header == ["section", "name", "shape", *compared, "tolerance", "verdict"]
    assert body == [
        ["results", "P3", "2", "5", "2.5e-11", "-", "1e-09", "ok"],
        ["results", "kept", "2", "-", "-", "1.0e+00", "0", "1 entries differ"],
    ]
    shown = report._repr_html_()
    assert "<caption>RoIAlign</caption>" in shown and report.summary in shown
    # Words, not colours, tell the verdict: it is read in a light and in a dark theme.
    assert "color" not in shown and "background" not in shown


def test_a_notebook_shows_sections_and_skipped_backends_escaped():
    rows = [Row("<b>", "1", {"torch": difference([1.0], [1.0])}, 0.0)]
    report = Report("1 < 2", {"losses": rows, "a & b": rows}, {"triton": "<no GPU>"})
    header, *body = cells(report)
    assert "NumPy" not in header and [row[:2] for row in body] == [
        ["losses", "<b>"],
        ["a & b", "<b>"],
    ]
    shown = report._repr_html_()
    assert "triton did not run: &lt;no GPU&gt;" in shown and "1 &lt; 2" in shown
    with pytest.raises(ValueError, match="nothing was compared"):
        Report.of("empty", [])


@pytest.mark.parametrize(
    ("name", "without_masks", "maps"),
    [
        ("detectron2_r50_c4", False, ["C2", "C3", "C4", "P4"]),
        ("paper_vgg16", True, ["C1", "C2", "C3", "C4", "C5", "P4"]),
    ],
)
def test_a_single_map_and_no_mask_branch(name, without_masks, maps, image, monkeypatch):
    monkeypatch.setattr(detection, "BACKENDS", ("torch",))
    config = narrow.config(name)
    if without_masks:
        config = replace(config, mask_head=replace(config.mask_head, kind="none"))
    report = detection.compare(narrow.model(config, dtype=torch.float32), image, proposals=5)
    assert report.passed, report.summary
    stages = [row.name for row in report.rows]
    assert [stage for stage in stages if stage[0] in "CP"] == maps
    assert {"mask_features", "mask_logits", "masks"} & set(stages) == (
        set() if without_masks else {"mask_features", "mask_logits", "masks"}
    )
