"""engine.callbacks: events of a training, early stopping, TensorBoard and validation losses."""

import sys
from dataclasses import replace

import pytest
import torch
from support import small

from accelerated.engine import early_stopping, log, validation
from accelerated.engine import train as training
from accelerated.engine.callbacks import Callback, CallbackError
from accelerated.mask_rcnn import MaskRCNN


def run(output, iterations=4, **options):
    options = {"batch_size": 2, "log_every": 1, "bar": False} | options
    return training.train(small.config(), small.shapes(6), output, iterations=iterations, **options)


@pytest.fixture
def scripted(monkeypatch):
    """Give evaluations these APs, one after the other: scripted([0.1, 0.3])."""

    def use(values):
        def evaluate(model, dataset, *, workers, output):
            metrics = {"bbox": {"AP": 0.9}, "segm": {"AP": remaining.pop(0)}}
            training.write_json(output / "metrics.json", metrics)
            return metrics

        remaining = list(values)
        monkeypatch.setattr("accelerated.engine.run.evaluate", evaluate)
        return remaining

    return use


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda run: self.events.append((name[3:], run.iteration))
        return super().__getattribute__(name)


def test_callbacks_are_called_at_their_events_and_change_nothing(tmp_path, scripted):
    recorder, options = Recorder(), {"evaluation": small.shapes(1), "evaluate_every": 2}
    scripted([0.1, 0.2, 0.1, 0.2])
    plain = run(tmp_path / "plain", 3, **options).model.state_dict()
    watched = run(tmp_path / "watched", 3, callbacks=[recorder], **options).model.state_dict()
    assert all(torch.equal(tensor, watched[name]) for name, tensor in plain.items())
    assert recorder.events == [
        ("start", 0),
        *[("step", 1), ("log", 1)],
        *[("step", 2), ("log", 2), ("checkpoint", 2), ("evaluation", 2)],
        *[("step", 3), ("log", 3), ("checkpoint", 3), ("evaluation", 3)],
        ("end", 3),
    ]


def test_a_callback_stops_the_run_as_if_finished(tmp_path, scripted):
    class Stop(Callback):
        def on_step(self, run):
            if run.iteration == 2:
                run.stop("enough")

    scripted([0.1, 0.2])
    options = {"evaluation": small.shapes(1)}
    result = run(tmp_path, 9, callbacks=[Stop()], **options)
    assert (result.iteration, result.stopped, result.interrupted) == (2, "enough", None)
    assert result.best.iteration == 2
    # It goes on where it stopped.
    result = run(tmp_path, 4, resume=True, **options)
    assert (result.iteration, result.stopped) == (4, None)


@pytest.mark.parametrize("event", ["start", "step", "log", "checkpoint", "end"])
def test_an_error_names_the_callback(event, tmp_path):
    def broken(self, run):
        raise KeyError("colour")

    callback = type("Painter", (Callback,), {f"on_{event}": broken})()
    message = rf"^callback Painter, on_{event}, at step [01]: KeyError: 'colour'$"
    with pytest.raises(CallbackError, match=message):
        run(tmp_path, 1, callbacks=[callback])


def test_a_run_ends_after_evaluations_that_are_no_better(tmp_path, scripted):
    remaining = scripted([0.1, 0.3, 0.3, None, 0.2, 0.1, 0.4, 0.1, 0.1, 0.1])
    options = {"evaluation": small.shapes(1), "evaluate_every": 1, "keep": 1}
    result = run(tmp_path, 9, stop_early=3, **options)
    assert result.iteration == 5 and len(remaining) == 5 and result.interrupted is None
    assert result.stopped == "no better average precision in 3 evaluations"
    assert result.best.iteration == 2 and (tmp_path / "best").exists()
    # Still due: nothing is trained, and the last evaluation is shown again.
    result = run(tmp_path, 9, stop_early=3, resume=True, **options)
    assert result.iteration == 5 and result.stopped and len(remaining) == 4
    # Not due any more: a better one comes, and the count begins again.
    result = run(tmp_path, 9, stop_early=4, resume=True, **options)
    assert (result.iteration, result.stopped, remaining) == (9, None, [])
    assert result.best.iteration == 6


def test_evaluations_since_the_best_are_counted():
    lines = [
        {"iteration": step, "evaluation": {}, "best": best}
        for step, best in ((5, None), (7, 7), (9, 7), (11, 7))
    ]
    count = early_stopping.evaluations_since_best
    assert [count(lines[:n]) for n in range(5)] == [0, 1, 0, 1, 2]
    assert count([{"iteration": 12, "loss": 1.0}, *lines[:1], *lines[:1]]) == 2


def test_stopping_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match=r"--stop-early .*: add --evaluate-every and --val$"):
        run(tmp_path, evaluation=small.shapes(1), stop_early=2)


def test_validation_losses_are_those_of_one_batch_and_change_nothing(tmp_path, monkeypatch):
    data = small.shapes(3, seed=1)
    options = {"evaluation": data, "evaluate_every": 1}
    model = run(tmp_path / "run", 2, validation_losses=True, **options).model
    plain = run(tmp_path / "plain", 2, **options).model.state_dict()
    assert all(torch.equal(x, plain[name]) for name, x in model.state_dict().items())
    lines = log.read(tmp_path / "run" / "log.jsonl")
    found = [line["validation"] for line in lines if "evaluation" in line]
    assert len(found) == 2 and found[0] != found[1]
    assert list(found[1]) == ["rpn_objectness", "rpn_box", "class", "box", "mask"]
    assert found[1] == validation.losses(model.train(), data, seed=0) and model.training
    assert found[1] != validation.losses(model, data, seed=1)
    # All images at once, with the same draws.
    drawn, own = [], validation._priorities
    monkeypatch.setattr(
        validation, "_priorities", lambda *given: drawn.append(own(*given)) or drawn[-1]
    )
    validation.losses(model, data, seed=0)
    items = [data[i] for i in range(3)]
    batch = model.batch([item.image for item in items], [item.target for item in items])
    proposals = model.config.rpn.post_nms_top_n_train
    slots = proposals + batch.boxes.shape[1]
    roi = [torch.nn.functional.pad(x["roi"][0], (0, slots - x["roi"].shape[1])) for x in drawn]
    priorities = {"rpn": torch.cat([x["rpn"] for x in drawn]), "roi": torch.stack(roi)}
    with torch.no_grad():
        expected = model.eval().batch_losses(batch, priorities)
    for name, loss in expected.items():
        assert found[1][name] == pytest.approx(loss.item(), rel=1e-5), name


def test_validation_losses_keep_running_statistics():
    config = small.config()
    config = replace(config, backbone=replace(config.backbone, norm="batch"))
    model = MaskRCNN(config).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    losses = validation.losses(model, small.shapes(2), seed=0)
    assert all(value is not None and value >= 0 for value in losses.values())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


def test_tensorboard_without_the_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("accelerated.engine.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "maskrcnn-triton\[tensorboard\]"$'):
        run(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_tensorboard_shows_the_log(tmp_path, scripted):
    """Also of a resumed run, at its steps; what a killed one wrote of later ones is purged."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scripted([0.25, 0.5, 0.75, 1.0])
    options = {"evaluation": small.shapes(1), "evaluate_every": 2, "tensorboard": True}
    options |= {"validation_losses": True, "checkpoint_every": 1}
    run(tmp_path, 3, **options)
    run(tmp_path, 4, resume=True, resume_from=2, **options)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = [line for line in log.read(tmp_path / "log.jsonl") if "loss" in line]
    shown = [(event.step, event.value) for event in events.Scalars("loss/mask")]
    assert shown == [(line["iteration"], pytest.approx(line["mask"])) for line in lines]
    assert [step for step, _ in shown] == [1, 2, 3, 4]
    assert [(e.step, e.value) for e in events.Scalars("segm/AP")] == [(2, 0.25), (4, 0.75)]
    tags = events.Tags()["scalars"]
    assert {"training/learning_rate", "loss/loss", "validation_loss/mask"} <= set(tags)
