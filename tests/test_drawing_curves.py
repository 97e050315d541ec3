"""Plots: from a log or from pairs of losses to a file, with Matplotlib's backend unchanged."""

import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

from accelerated.drawing import curves
from accelerated.verify.training import Pair


def test_loss_curve_from_a_log(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        {"iteration": i, "loss": 4 / (i + 1), "mask": 1 / (i + 1), "class": 1.0} for i in range(100)
    ]
    log.write_text(
        "\n".join(
            map(json.dumps, [{"start": "header"}, *rows, {"iteration": 100, "segm": {"AP": 0.5}}])
        )
    )
    curves.loss_curve(log, tmp_path / "deeper" / "loss.png")
    assert Image.open(tmp_path / "deeper" / "loss.png").size[0] > 500
    log.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        curves.loss_curve(log, tmp_path / "loss.png")


def test_loss_comparison(tmp_path):
    # Only the last losses differ.
    pairs = [
        Pair(i, {"mask": 1 / i}, {"mask": 1 / i + (i == 3) * 1e-12}, 0.1, 0.1) for i in (1, 2, 3)
    ]
    curves.loss_comparison(pairs, tmp_path / "deeper" / "loss.png")
    picture = np.asarray(Image.open(tmp_path / "deeper" / "loss.png").convert("RGB")).astype(int)
    assert picture.shape[1] > 500
    assert (picture.max(-1) < 40).any(), "PyTorch's black line"
    assert ((picture[..., 0] > 200) & (picture[..., 2] < 150) & (picture[..., 1] > 120)).any(), (
        "NumPy's orange one under it"
    )


def test_comparisons(tmp_path):
    groups = {
        "RoI operator": [("RoIAlign", [30.0, 31.0], 30.2), ("RoIPool", [], 26.9)],
        "Loss": [("sigmoid", [30.5], 30.3)],
    }
    curves.comparisons(groups, tmp_path / "deeper" / "rows.png", unit="mask AP")
    assert Image.open(tmp_path / "deeper" / "rows.png").size[0] > 500


def test_matplotlib_keeps_its_backend_and_holds_no_figure(tmp_path):
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    try:
        plt.switch_backend("svg")
        log = tmp_path / "log.jsonl"
        log.write_text('{"iteration": 1, "loss": 1.0}\n')
        curves.loss_curve(log, tmp_path / "loss.png")
        curves.loss_comparison([Pair(1, {"mask": 1}, {"mask": 1}, 0.1, 0.1)], tmp_path / "pair.png")
        curves.comparisons({"A": [("row", [1.0], 2.0)]}, tmp_path / "rows.png", unit="AP")
        assert matplotlib.get_backend() == "svg" and not plt.get_fignums()
    finally:
        plt.switch_backend(before)
