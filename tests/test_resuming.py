"""engine.start and engine.best: what a resumed run keeps, refuses and says; its best checkpoint."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import small

from accelerated.engine import best, checkpoint, log, progress, start
from accelerated.engine import train as training
from accelerated.engine.settings import fit_warmup
from accelerated.optimizer import learning_rate
from reference.config import override, preset

# Written before the schedule, the best checkpoint and run.json existed.
OLD_STATE = """{
 "format": 1,
 "iteration": 2,
 "categories": [
  {"id": 1, "name": "disc"}, {"id": 2, "name": "rectangle"}, {"id": 3, "name": "triangle"}
 ],
 "settings": {"seed": 0, "batch_size": 2, "amp": false, "iterations": 2, "fixed_shapes": false}
}"""


def run(output, iterations=4, config=None, dataset=None, **options):
    options = {"batch_size": 2, "log_every": 1, "bar": False} | options
    dataset = dataset or small.shapes(6)
    return training.train(
        config or small.config(), dataset, output, iterations=iterations, **options
    )


def same_weights(a, b):
    a, b = (checkpoint._tensors(checkpoint.find(run) / "model.safetensors") for run in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "two"
    run(folder, 2)
    return folder


@pytest.fixture
def stored(two_steps, tmp_path):
    """A copy of a run of two steps."""
    shutil.copytree(two_steps, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture
def scripted(monkeypatch):
    """Give evaluations these APs, one after the other: scripted([0.1, 0.3])."""

    def use(values):
        def evaluate(model, dataset, *, workers, output):
            value = remaining.pop(0)
            metrics = {"bbox": {"AP": 0.9}, "segm": {"AP": value}}
            training.write_json(output / "metrics.json", metrics)
            return metrics

        remaining = list(values)
        monkeypatch.setattr("accelerated.engine.run.evaluate", evaluate)

    return use


def names(folder):
    return [int(path.name) for path in sorted((folder / "checkpoints").iterdir())]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, scripted):
    options = {"evaluation": small.shapes(2), "evaluate_every": 1, "keep": 1}
    scripted([0.1, None, 0.3, 0.2, 0.3])
    result = run(tmp_path / "run", 5, **options)
    assert result.best == best.Best(3, "mask AP", 0.3) == best.read(tmp_path / "run")
    assert names(tmp_path / "run") == [3, 5]
    assert checkpoint.read(tmp_path / "run" / "best").iteration == 3
    assert checkpoint.read(tmp_path / "run").iteration == 5
    lines = [line for line in log.read(tmp_path / "run" / "log.jsonl") if "evaluation" in line]
    assert [line["best"] for line in lines] == [1, 1, 3, 3, 3]
    # A resumed run knows it; a better one takes its place.
    scripted([0.2, 0.4, 0.1])
    assert run(tmp_path / "run", 8, resume=True, **options).best.iteration == 7
    assert names(tmp_path / "run") == [7, 8]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_damaged_metrics_of_the_best_are_named(content, stored):
    checkpoint.mark_best(stored, 2)
    path = best.evaluations(stored, 2) / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        run(stored, 3, resume=True)
    assert str(caught.value).startswith(f"{path}: damaged (")
    assert str(caught.value).endswith("; delete it to do without")
    path.unlink()
    assert run(stored, 3, resume=True).iteration == 3


def test_the_best_of_a_model_without_masks_is_by_boxes(tmp_path):
    metrics = {"bbox": {"AP": 0.5}}
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    assert best.update(tmp_path, 2, metrics, None) == best.Best(2, "box AP", 0.5)
    assert best.describe(2, metrics, best.Best(1, "box AP", 0.6)) == (
        "step 2  evaluation: box AP 0.500 (best: 0.600 at step 1)"
    )
    assert best.update(tmp_path, 3, {"bbox": {"AP": None}}, None) is None


def test_a_kill_at_any_moment_leaves_the_best_and_the_last(stored, monkeypatch):
    """Each call that renames, links or deletes is the last one once."""
    checkpoint.mark_best(stored, 2)
    shutil.copytree(stored / "checkpoints" / "00000002", stored / "checkpoints" / "00000003")
    checkpoint.point(stored, "last", stored / "checkpoints" / "00000003")
    for later in (4, 5):
        shutil.copytree(
            stored / "checkpoints" / "00000002", stored / "checkpoints" / f"{later:08d}"
        )

    class Killed(BaseException):
        pass

    calls = []

    def deadly(function):
        def call(*arguments, **options):
            calls.append(function)
            if len(calls) == moment:
                raise Killed
            return function(*arguments, **options)

        return call

    originals = {name: getattr(Path, name) for name in ("replace", "symlink_to", "unlink")}
    model, optimizer = _model_and_optimizer()
    survived = 0
    for moment in range(1, 20):
        calls.clear()
        with monkeypatch.context() as patch:
            for name, function in originals.items():
                patch.setattr(Path, name, deadly(function))
            patch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
            try:
                checkpoint.mark_best(stored, 4)
                checkpoint.save(
                    stored, model, small.config(), CATEGORIES, optimizer, 6, settings={}, keep=1
                )
                survived += 1
            except Killed:
                pass
        for name in ("best", "last"):
            assert checkpoint.read(stored / name).config == small.config(), (moment, name)
        if survived:
            break
    assert survived and moment > 6 and names(stored) == [4, 6]


CATEGORIES = json.loads(OLD_STATE)["categories"]


def _model_and_optimizer():
    model = training.MaskRCNN(small.config())
    return model, training.torch_optimizer.build(model, small.config().optimizer)


def test_an_evaluation_that_a_kill_prevented_is_made_up(stored, scripted):
    scripted([0.1, 0.2])
    options = {"resume": True, "evaluation": small.shapes(2), "evaluate_every": 2}
    run(stored, 4, **options)
    lines = [line for line in log.read(stored / "log.jsonl") if "evaluation" in line]
    assert [line["iteration"] for line in lines] == [2, 4]
    # Once: it is in the log now.
    scripted([0.3])
    run(stored, 5, **options)


def test_a_run_of_an_older_version_resumes(stored):
    (stored / "last" / "state.json").write_text(OLD_STATE)
    result = run(stored, 3, resume=True)
    assert result.iteration == 3 and result.best is None
    assert checkpoint.read(stored).settings["schedule"] == 3


def test_resume_starts_where_there_is_no_run(two_steps, tmp_path):
    run(tmp_path / "new", 2, resume=True)
    assert same_weights(two_steps, tmp_path / "new")
    # A broken link is no reason to start again over what is left of a run.
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    with pytest.raises(ValueError, match=r"last: no such checkpoint; .* has no whole checkpoint"):
        run(tmp_path / "new", 2, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"class_names": ["rectangle", "disc", "triangle"]},
            "label 1 was 'disc' with id 1, in this data it is 'rectangle' with id 1;",
        ),
        (
            {"category_ids": [1, 2, 4]},
            "label 3 was 'triangle' with id 3, in this data it is 'triangle' with id 4;",
        ),
    ],
)
def test_other_categories_are_refused(two_steps, change, said):
    dataset = small.shapes(6)
    for name, value in change.items():
        setattr(dataset, name, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        run(two_steps, 3, dataset=dataset, resume=True)
    assert checkpoint.read(two_steps).iteration == 2


def test_a_longer_run_moves_the_rate_or_keeps_its_schedule(two_steps, tmp_path):
    config, rates = small.config(), {}
    assert start.schedule_change(two_steps, 2, 2) is None
    texts = [f"{learning_rate(config.optimizer, 2, steps, 2):.3g}" for steps in (2, 8)]
    assert start.schedule_change(two_steps, 8, 2) == (
        f"learning rate at step 2: {texts[0]} under the schedule of 2 steps,"
        f" {texts[1]} under that of 8; training goes on with the latter"
        " (--keep-schedule: the former)"
    )
    for keep in (False, True):
        folder = tmp_path / str(keep)
        shutil.copytree(two_steps, folder, symlinks=True)
        run(folder, 4, resume=True, keep_schedule=keep)
        # Said once, it holds for later restarts of the same length.
        run(folder, 4, resume=True)
        rates[keep] = [line["learning_rate"] for line in log.read(folder / "log.jsonl")]
    steps = {False: 4, True: 2}
    for keep, schedule in steps.items():
        expected = [learning_rate(config.optimizer, i, schedule, 2) for i in (2, 3)]
        assert rates[keep][2:] == pytest.approx(expected), keep
        assert checkpoint.read(tmp_path / str(keep)).settings["schedule"] == schedule
    assert rates[False] != rates[True]
    assert start.schedule_change(tmp_path / "True", 4, 2) is None


def test_a_rate_that_does_not_change_is_not_spoken_of(tmp_path):
    run(tmp_path / "run", 2, override(small.config(), "optimizer.gamma=1"))
    assert start.schedule_change(tmp_path / "run", 8, 2) is None


def test_a_cosine_that_has_ended_cannot_be_kept(tmp_path):
    config = small.config(schedule="cosine")
    run(tmp_path, 1, config)
    with pytest.raises(ValueError, match="cosine schedule of 1 steps ends with a rate of 0"):
        run(tmp_path, 2, config, resume=True, keep_schedule=True)
    run(tmp_path, 2, config, resume=True)


def test_the_warmup_is_a_tenth_of_the_run_at_most():
    config = preset("torchvision_r50_fpn")
    assert fit_warmup(config, 1000).optimizer.warmup_iterations == 100
    assert fit_warmup(config, 5).optimizer.warmup_iterations == 0
    assert fit_warmup(config, 20000) == config
    short = override(config, "optimizer.warmup_iterations=3")
    assert fit_warmup(short, 100) == short


def test_progress_is_lines_where_there_is_no_terminal(tmp_path, capsys, monkeypatch, scripted):
    scripted([0.25, 0.5])
    options = {"evaluation": small.shapes(2), "evaluate_every": 2, "bar": True}
    run(tmp_path / "seldom", 4, **options)
    number = r"\d+(\.\d+)?(e-\d+)?"
    step = rf"step {{}} of 4  loss {number}  lr {number}  {number} images/s  \d+:\d\d left"
    lines = capsys.readouterr().out.splitlines()
    # The first, not those within half a minute, and the last.
    expected = [
        step.format(1),
        r"step 2  evaluation: mask AP 0\.250, box AP 0\.900 \(the best so far\)",
        step.format(4),
        r"step 4  evaluation: mask AP 0\.500, box AP 0\.900 \(the best so far\)",
    ]
    assert len(lines) == 4
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    monkeypatch.setattr("accelerated.engine.progress.EVERY", 0.0)
    run(tmp_path / "often", 4, bar=True)
    assert len(capsys.readouterr().out.splitlines()) == 4
    run(tmp_path / "never", 1, bar=False)
    assert capsys.readouterr().out == ""


def test_the_time_that_is_left(capsys):
    values = {"loss": 1.0, "learning_rate": 0.1, "images_per_second": 2.0, "seconds": 15.0}
    progress.Shown(0, 10).step(4, values)
    assert capsys.readouterr().out.endswith("  1:30 left\n")


def test_progress_is_a_bar_in_a_terminal(tmp_path, capsys, monkeypatch, scripted):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    scripted([0.25])
    run(tmp_path, 1, bar=True, evaluation=small.shapes(2))
    shown = capsys.readouterr().out
    assert "1/1" in shown and "mask AP 0.250" in shown and "images/s" not in shown
