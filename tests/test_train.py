"""engine.train: a run can be killed, interrupted, resumed and diagnosed, and learns."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small

from accelerated.engine import checkpoint, log
from accelerated.engine.evaluate import detect
from accelerated.engine.failure import NotFiniteError
from accelerated.engine.run import Run, _generator
from accelerated.engine.start import initialize
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN

LOSSES = ["rpn_objectness", "rpn_box", "class", "box", "mask"]


def run(output, iterations=4, config=None, dataset=None, **options):
    options = {"batch_size": 2, "log_every": 1, "bar": False} | options
    return train(
        config or small.config(),
        small.shapes(6) if dataset is None else dataset,
        output,
        iterations=iterations,
        **options,
    )


def weights(run):
    return dict(checkpoint._tensors(checkpoint.find(run) / "model.safetensors"))


def assert_same_run(a, b):
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name
    for line, other in zip(log.read(a / "log.jsonl"), log.read(b / "log.jsonl"), strict=True):
        assert line.keys() == other.keys()
        for key in {"iteration", "loss", "learning_rate", "gradient_norm", *LOSSES} & line.keys():
            assert line[key] == other[key], (line["iteration"], key)


def test_the_log_tells_every_loss_and_the_loss_falls(tmp_path):
    result = run(tmp_path, 12, small.config(learning_rate=0.05), dataset=small.shapes(2))
    lines = log.read(tmp_path / "log.jsonl")
    assert (
        [line["iteration"] for line in lines] == list(range(1, 13))
        and result.iteration == 12
        and not result.interrupted
    )
    keys = {
        *LOSSES,
        "loss",
        "gradient_norm",
        "learning_rate",
        "seconds",
        "data_seconds",
        "images_per_second",
        "memory_mb",
    }
    assert all(keys <= line.keys() for line in lines)
    np.testing.assert_allclose(
        [line["loss"] for line in lines],
        [sum(line[name] for name in LOSSES) for line in lines],
        rtol=1e-5,
    )
    assert np.mean([line["loss"] for line in lines[-3:]]) < 0.8 * lines[0]["loss"]


CHILD = """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    import test_train
    write = test_train.log.Log.write
    def pause(self, iteration, **values):
        write(self, iteration, **values)
        if iteration == 3 and len(sys.argv) == 3:
            # For the signal to arrive.
            time.sleep(2)
    test_train.log.Log.write = pause
    test_train.run(sys.argv[2], 6, checkpoint_every=2, workers=1, resume=len(sys.argv) > 3)
"""


def start(output, *more):
    arguments = [
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        os.path.dirname(__file__),
        str(output),
        *more,
    ]
    return subprocess.Popen(
        arguments,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
    )


def wait_for(path, iteration, process, patience=120):
    deadline = time.monotonic() + patience
    while not (path.exists() and any(line["iteration"] >= iteration for line in log.read(path))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_or_interrupted_run_resumes_bit_for_bit(how, tmp_path):
    """SIGKILL the process alone; others reach its group with the loaders, as of a terminal."""
    run(tmp_path / "whole", 6, checkpoint_every=2)
    process = start(tmp_path / "parts")
    wait_for(tmp_path / "parts" / "log.jsonl", 3, process)
    if how == signal.SIGKILL:
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert checkpoint.read(tmp_path / "parts").iteration == 2
    else:
        os.killpg(process.pid, how)
        assert process.wait(timeout=120) == 0
        assert checkpoint.read(tmp_path / "parts").iteration in (3, 4)
    assert start(tmp_path / "parts", "resume").wait(timeout=120) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_image_that_is_not_finite_is_named_and_the_last_checkpoint_is_good(
    tmp_path, monkeypatch
):
    module = sys.modules[Run.__module__]

    def poisoned(*arguments, **options):
        for batch in loader(*arguments, **options):
            batch.pixels = batch.pixels.float()
            for image_id, image in zip(batch.image_ids, batch.images(), strict=True):
                image *= float("nan") if image_id == 5 else 1.0
            yield batch

    loader = module.loader
    monkeypatch.setattr(module, "loader", poisoned)
    with pytest.raises(
        NotFiniteError, match=r"^iteration 2: images is not finite \(images (5, \d+|\d+, 5)\)"
    ):
        run(tmp_path, 9, checkpoint_every=1)
    assert checkpoint.read(tmp_path).iteration == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    with pytest.raises(NotFiniteError, match=r"training stopped, no checkpoint was written$"):
        run(tmp_path / "without", 9, checkpoint_every=0)


@pytest.mark.parametrize(
    "stage",
    [
        "P3",
        "rpn_logits",
        "box_deltas",
        "mask_logits",
        "loss mask",
        "gradient of fpn.output3.weight",
    ],
)
def test_the_first_stage_that_is_not_finite_is_named(stage, tmp_path, monkeypatch):
    """The third step fails at `stage`; the log is read at the fifth; the second's weights stay."""
    original, calls = MaskRCNN.batch_losses, []
    layer = {
        "P3": "fpn.output3",
        "rpn_logits": "rpn.logits",
        "box_deltas": "box_head.box_deltas",
        "mask_logits": "mask_head.deconv",
    }
    nan = torch.tensor(float("nan"))

    def broken(self, batch, generator, record):
        calls.append([parameter.detach().clone() for parameter in self.parameters()])
        if generator.initial_seed() != _generator(0, 2, "cpu").initial_seed():
            return original(self, batch, generator=generator, record=record)
        if stage.startswith("gradient"):
            self.fpn.output3.weight.register_hook(lambda gradient: gradient * nan)
        module = self.get_submodule(layer.get(stage, ""))
        handle = module.register_forward_hook(lambda module, inputs, output: output * nan)
        losses = original(self, batch, generator=generator, record=record)
        handle.remove()
        return losses | {"mask": losses["mask"] + nan} if stage == "loss mask" else losses

    monkeypatch.setattr(MaskRCNN, "batch_losses", broken)
    with pytest.raises(
        NotFiniteError, match=rf"^iteration 2: {stage} is not finite \(images \d+, \d+\)"
    ):
        run(tmp_path, 9, checkpoint_every=2, log_every=5)
    # Steps 0 to 3, and the third again: a checkpoint was due after the fourth.
    assert len(calls) == 5
    assert all(torch.equal(a, b) for a, b in zip(calls[2], calls[4], strict=True)), (
        "not with the weights that failed"
    )
    assert checkpoint.read(tmp_path).iteration == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_settings_that_do_not_fit_are_refused_in_one_line(tmp_path):
    run(tmp_path, 1)
    cases = [
        (dict(), "already holds a run"),
        (dict(resume=True, batch_size=3), "batch_size = 2, not 3"),
        (dict(resume=True, seed=1), "seed = 0, not 1"),
        (
            dict(resume=True, config=small.config(momentum=0.8)),
            r"optimizer\.momentum = 0\.9, not 0\.8",
        ),
        (dict(resume=True, iterations=0), "1 steps already"),
        (
            dict(resume=True, config=replace(small.config(), num_classes=5)),
            "3 categories, but num_classes is 5",
        ),
        (dict(resume=True, dataset=small.shapes(0)), "no images"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            run(tmp_path, **options)
        assert "\n" not in str(caught.value)


def test_fixed_shapes_train_and_older_checkpoints_had_none(tmp_path):
    run(tmp_path / "run", 1, fixed_shapes=True)
    with pytest.raises(ValueError, match="fixed_shapes = True, not False"):
        run(tmp_path / "run", 2, resume=True)
    run(tmp_path / "run", 2, resume=True, fixed_shapes=True)
    run(tmp_path / "older", 1)
    state = tmp_path / "older" / "last" / "state.json"
    older = json.loads(state.read_text()) | {"format": 1}
    del older["settings"]["fixed_shapes"]
    state.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="fixed_shapes = False, not True"):
        run(tmp_path / "older", 2, resume=True, fixed_shapes=True)
    run(tmp_path / "older", 2, resume=True)
    run(tmp_path / "whole", 2)
    assert_same_run(tmp_path / "whole", tmp_path / "older")


class Mixed:
    """Shapes, every second image narrower: padding would enter the statistics of a group norm."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        item = self.dataset[index]
        columns = 64 if index % 2 else 32
        return item._replace(
            image=item.image[:, :columns],
            target=replace(item.target, masks=item.target.masks[:, :, :columns]),
        )


def test_the_last_evaluation_is_what_evaluate_gives(tmp_path):
    evaluation = Mixed(small.shapes(4, seed=1))
    config = small.config()
    config = replace(
        config,
        transform=replace(config.transform, min_size=()),
        box_head=replace(config.box_head, score_threshold=0.0),
    )
    model = run(tmp_path, iterations=2, config=config, evaluation=evaluation).model
    written = json.loads((tmp_path / "evaluations" / "00000002" / "results.json").read_text())
    assert len(written) > 10
    assert written == detect(model, evaluation)
    assert written != detect(model, evaluation, batch_size=2), (
        "batches of other sizes must matter for this test to mean anything"
    )


def test_starting_from_weights(tmp_path):
    run(tmp_path / "first", 1)
    model = MaskRCNN(small.config())
    names = checkpoint.read(tmp_path / "first").categories
    model.categories = names
    assert initialize(model, tmp_path / "first").fresh == []
    for name, tensor in weights(tmp_path / "first").items():
        assert torch.equal(model.state_dict()[name], tensor), name
    other = MaskRCNN(replace(small.config(), num_classes=1))
    other.categories = [{"id": 1, "name": "none of them"}]
    left = initialize(other, tmp_path / "first" / "last").fresh
    assert {name.rpartition(".")[0] for name in left} == {
        "box_head.class_logits",
        "box_head.box_deltas",
        "mask_head.logits",
    }
    wider = small.config()
    with pytest.raises(ValueError, match=r"mask_head.*the model's"):
        initialize(
            MaskRCNN(replace(wider, mask_head=replace(wider.mask_head, channels=12))),
            tmp_path / "first",
        )
    bgr = replace(wider, transform=replace(wider.transform, channel_order="bgr"))
    with pytest.raises(
        ValueError,
        match=r'was trained with transform.channel_order = "rgb", not "bgr": add --set',
    ):
        initialize(MaskRCNN(bgr), tmp_path / "first")


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_other_norms_adamw_and_bfloat16_train_too(norm, tmp_path):
    config = small.config(kind="adamw", learning_rate=1e-3)
    config = replace(
        config, backbone=replace(config.backbone, norm=norm), fpn=replace(config.fpn, norm=norm)
    )
    run(tmp_path, 2, config, amp=True, evaluation=small.shapes(2), evaluate_every=1)
    lines = [line for line in log.read(tmp_path / "log.jsonl") if "evaluation" in line]
    assert [line["iteration"] for line in lines] == [1, 2] and "AP50" in lines[0]["evaluation"][
        "segm"
    ]
    assert (
        json.loads(Path(tmp_path, "evaluations", "00000002", "metrics.json").read_text())
        == lines[1]["evaluation"]
    )
