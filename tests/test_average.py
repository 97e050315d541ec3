"""engine.average: averaged weights are stored and judged, and training does not notice."""

import json
from dataclasses import replace

import pytest
import torch
from support import small
from torch.utils._python_dispatch import TorchDispatchMode

from accelerated.engine import average, checkpoint, log
from accelerated.engine.average import Average
from accelerated.engine.evaluate import detect
from accelerated.engine.run import Run
from accelerated.engine.train import train

OPTIONS = {"batch_size": 2, "log_every": 1, "bar": False}


def run(output, iterations=4, config=None, **options):
    config = config or small.config()
    return train(config, small.shapes(6), output, iterations=iterations, **OPTIONS | options)


def tensors(output, file="model"):
    return checkpoint._tensors(checkpoint.find(output) / f"{file}.safetensors")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run without and one with an average, evaluated, of a model with running statistics."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"evaluation": small.shapes(2), "evaluate_every": 2, "checkpoint_every": 1, "keep": 9}
    config = small.config(kind="adamw", learning_rate=1e-2)
    config = replace(config, backbone=replace(config.backbone, norm="batch"))
    run(folder / "plain", 4, config, **options)
    result = run(folder / "averaged", 4, config, ema=0.3, **options)
    return folder, result, options, config


def test_the_weights_are_those_of_a_run_without_an_average(runs):
    folder, *_ = runs
    plain, own = tensors(folder / "plain"), tensors(folder / "averaged", "optimizer")
    own = {name.partition("/")[2]: x for name, x in own.items() if name.startswith("weights/")}
    assert own and all(torch.equal(plain[name], tensor) for name, tensor in own.items())
    lines = zip(
        *(log.read(folder / name / "log.jsonl") for name in ("plain", "averaged")), strict=True
    )
    compared = [(a, b) for a, b in lines if "loss" in a]
    assert len(compared) == 4
    for a, b in compared:
        assert all(a[key] == b[key] for key in ("loss", "mask", "gradient_norm", "learning_rate"))


def test_a_checkpoint_holds_the_averages_and_statistics_of_now(runs):
    folder, *_ = runs
    expected = None
    for step in range(1, 5):
        checkpoints = folder / "plain" / "checkpoints" / f"{step:08d}"
        plain = checkpoint._tensors(checkpoints / "model.safetensors")
        if step == 1:
            # The average begins with the initial weights, of which 2/11 remain after a step.
            first = tensors(folder / "averaged" / "checkpoints" / "00000001")
            expected = first
            continue
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {n: decay * expected[n] + (1 - decay) * x for n, x in plain.items()}
    averages = tensors(folder / "averaged")
    trained = {n.partition("/")[2] for n in tensors(folder / "averaged", "optimizer")}
    trained &= averages.keys()
    for name, tensor in averages.items():
        if name in trained:
            assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-7), name
            assert not torch.equal(tensor, plain[name]) or not tensor.any(), name
        else:
            assert torch.equal(tensor, plain[name]), name
    assert any("running_mean" in name for name in averages.keys() - trained)
    state = json.loads((folder / "averaged" / "last" / "state.json").read_text())
    assert state["settings"]["ema"] == 0.3


def test_the_decay_warms_up():
    assert average.warmed_up(0.999, 1) == pytest.approx(2 / 11)
    assert average.warmed_up(0.999, 10**5) == 0.999
    layer = torch.nn.Linear(1, 1)
    averages = Average(layer, 0.5)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 11
    averages.prepare(1)
    averages.update()
    assert averages.tensors["weight"] == pytest.approx((before + 9).item())


def test_the_averages_are_evaluated_and_returned(runs):
    folder, result, _, _ = runs
    stored = tensors(folder / "averaged")
    assert same(dict(result.model.state_dict()), stored)
    written = json.loads((folder / "averaged/evaluations/00000004/results.json").read_text())
    assert written == detect(result.model, small.shapes(2))
    assert written != json.loads((folder / "plain/evaluations/00000004/results.json").read_text())


def test_an_averaged_run_resumes_bit_for_bit(runs, tmp_path):
    folder, _, options, config = runs
    for steps in (1, 4):
        run(tmp_path / "run", steps, config, ema=0.3, resume=steps > 1, **options)
    for file in ("model", "optimizer"):
        assert same(tensors(tmp_path / "run", file), tensors(folder / "averaged", file))


def test_another_average_is_refused_and_older_runs_had_none(tmp_path):
    with pytest.raises(ValueError, match="--ema 1: expected a decay from 0 "):
        run(tmp_path, 1, ema=1.0)
    run(tmp_path, 1)
    with pytest.raises(ValueError, match=r"was started with ema = 0\.0, not 0\.9: resume it"):
        run(tmp_path, 2, ema=0.9, resume=True)
    path = tmp_path / "last" / "state.json"
    state = json.loads(path.read_text()) | {"format": 1}
    del state["settings"]["ema"]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"ema = 0\.0, not 0\.9"):
        run(tmp_path, 2, ema=0.9, resume=True)
    assert run(tmp_path, 2, resume=True).iteration == 2


class NoReading(TorchDispatchMode):
    """Fails where a value is read from a tensor, for which a GPU would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, args
        return function(*args, **kwargs or {})


def test_an_update_reads_no_value_and_stays_in_place(tmp_path, monkeypatch):
    """So it can be captured in a CUDA graph, and nothing waits for the device."""
    places, step, update = [], Run.step, Average.update

    def watched(self, batch, waited):
        step(self, batch, waited)
        kept = [*self.average.tensors.values(), self.average._share]
        places.append([tensor.data_ptr() for tensor in kept])

    def without_reading(self):
        with NoReading():
            update(self)

    monkeypatch.setattr(Run, "step", watched)
    monkeypatch.setattr(Average, "update", without_reading)
    run(tmp_path, 3, ema=0.9)
    assert places[0] == places[1] == places[2]
    with pytest.raises(AssertionError), NoReading():
        torch.zeros(()).item()
