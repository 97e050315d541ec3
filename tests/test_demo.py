"""The demonstrations as a user runs them, on less data; a run leaves an earlier one alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from accelerated.command_line import demo
from accelerated.data import synthetic
from reference import config as configuration
from reference import optimizer

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Shrink the demonstration to four images of 64 pixels and one proposal to verify."""
    whole = synthetic.ShapesDataset
    monkeypatch.setattr(
        synthetic, "ShapesDataset", lambda count, seed=0: whole(min(count, 4), seed=seed, size=64)
    )
    monkeypatch.setattr(demo, "INTERPRETED", 1)


def test_the_whole_way(small, tmp_path, capsys):
    assert demo.train_on_shapes(tmp_path / "demo", 1, 2, 0, CPU, 0)
    out = capsys.readouterr().out
    assert "Mask AP" in out and "agree in all" in out
    assert "predictions.png, loss.png, log.jsonl, last" in " ".join(out.split())
    assert all(
        Image.open(tmp_path / "demo" / f"{name}.png").size[0] > 500
        for name in ("predictions", "loss")
    )


@pytest.mark.parametrize(
    ("options", "steps"), [((), 1200), (("--numpy",), 100), (("--iterations", 7), 7)]
)
def test_the_number_of_steps(command, options, steps, monkeypatch, tmp_path):
    asked = []
    for name in ("train_on_shapes", "train_in_numpy"):
        monkeypatch.setattr(demo, name, lambda output, iterations, *_: asked.append(iterations))
    command("demo", "--output", tmp_path, "--device", "cpu", *options)
    assert asked == [steps]


@pytest.fixture
def tiny(monkeypatch):
    from support import small

    monkeypatch.setattr(configuration, "preset", lambda name: small.config())


def test_numpy_trains_beside_pytorch(tiny, tmp_path, capsys):
    for folder in ("demo", "demo-2"):
        assert demo.train_in_numpy(tmp_path / "demo", 2, 1, CPU, 0)
        out = capsys.readouterr().out
        assert (
            "agree" in out
            and "2 steps of 1 images" in out
            and str(tmp_path / folder) in out.replace("\n", "")
        )
        assert Image.open(tmp_path / folder / "loss.png").size[0] > 500
    first, second = map(json.loads, (tmp_path / "demo" / "log.jsonl").read_text().splitlines())
    assert (first["iteration"], second["iteration"]) == (1, 2) and len(first["numpy"]) == 5
    assert np.isclose(first["numpy"]["mask"], first["torch"]["mask"], rtol=1e-9)


def test_a_wrong_numpy_fails(tiny, tmp_path, capsys, monkeypatch):
    exact = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda p, g, state, rate, config: exact(p, g, state, rate * 1.1, config)
    )
    assert not demo.train_in_numpy(tmp_path / "demo", 2, 1, CPU, 0)
    assert "differ" in capsys.readouterr().out
