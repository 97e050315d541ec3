"""Plots: from a log or from pairs of losses to a figure, with Matplotlib's backend unchanged."""

import io
import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

from accelerated.drawing import curves
from accelerated.verify.training import Pair


def pixels(figure):
    """What a saved figure shows: [H, W, 3]."""
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_loss_curve_from_a_log(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {"iteration": i, "loss": 4 / (i + 1), "mask": 1 / (i + 1), "class": 1.0} for i in range(100)
    ]
    lines = [{"iteration": 0, "weights": "coco"}, *rows, {"iteration": 100, "segm": {"AP": 0.5}}]
    log.write_text("\n".join(map(json.dumps, lines)))
    figure = curves.loss_curve(log)
    (axes,) = figure.axes
    shown = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert list(shown) == ["loss", "class", "mask"]
    # The means of two steps.
    expected = [4.0, *(2 / (i + 1) + 2 / i for i in range(1, 100))]
    np.testing.assert_allclose(shown["loss"].get_ydata(), expected)
    assert pixels(figure).shape[:2] == (540, 840)
    log.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        curves.loss_curve(log)


def test_validation_losses_are_dashed_in_the_same_colours(tmp_path):
    rows = [{"iteration": i, "loss": 3.0, "mask": 1.0, "class": 2.0} for i in (1, 2, 3)]
    losses = [{"mask": 0.5, "class": 4.0}, {"mask": None, "class": 2.0}, "none"]
    rows += [{"iteration": i, "validation": x} for i, x in zip((1, 2, 3), losses, strict=True)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (axes,) = curves.loss_curve(tmp_path / "log.jsonl").axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(map(float, line.get_ydata())) for line in dashed] == [[4.5], [4, 2], [0.5], []]
    solid = [line.get_color() for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in dashed] == [*solid, "gray"]


def test_loss_comparison():
    # Only the last losses differ.
    pairs = [
        Pair(i, {"mask": 1 / i}, {"mask": 1 / i + (i == 3) * 1e-12}, 0.1, 0.1) for i in (1, 2, 3)
    ]
    picture = pixels(curves.loss_comparison(pairs))
    assert picture.shape[:2] == (660, 840)
    assert (picture.max(-1) < 40).any(), "PyTorch's black line"
    assert ((picture[..., 0] > 200) & (picture[..., 2] < 150) & (picture[..., 1] > 120)).any(), (
        "NumPy's orange one under it"
    )


def test_comparisons():
    groups = {
        "RoI operator": [("RoIAlign", [30.0, 31.0], 30.2), ("RoIPool", [], 26.9)],
        "Loss": [("sigmoid", [30.5], 30.3)],
    }
    figure = curves.comparisons(groups, unit="mask AP")
    assert [axes.get_title() for axes in figure.axes] == list(groups)
    assert {axes.get_xlabel() for axes in figure.axes} == {"mask AP"}
    assert pixels(figure).shape[:2] == (252, 1008)


def test_matplotlib_keeps_its_backend_and_holds_no_figure(tmp_path):
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    try:
        plt.switch_backend("svg")
        log = tmp_path / "log.jsonl"
        log.write_text('{"iteration": 1, "loss": 1.0}\n')
        for index, figure in enumerate(
            [
                curves.loss_curve(log),
                curves.loss_comparison([Pair(1, {"mask": 1}, {"mask": 1}, 0.1, 0.1)]),
                curves.comparisons({"A": [("row", [1.0], 2.0)]}, unit="AP"),
            ]
        ):
            figure.savefig(tmp_path / f"{index}.png")
        assert matplotlib.get_backend() == "svg" and not plt.get_fignums()
    finally:
        plt.switch_backend(before)
