"""engine.group: several processes train and evaluate as one, and name the one that is missing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from support import several_processes, small
from torch import distributed

from accelerated.data.dataset import Dataset, Item
from accelerated.engine import evaluate, group, log
from accelerated.engine.failure import NotFiniteError
from accelerated.engine.settings import check_execution, check_processes
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Target
from reference.config import override

SIZES = [(40, 64), (64, 40), (33, 50), (64, 64)]
COUNTS = [3, 0, 1, 0, 4, 0]


class Mixed(Dataset):
    """Images of several sizes, landscape and portrait, half of them without an object."""

    category_ids, class_names, max_objects = [1, 2], ["a", "b"], 4

    def __init__(self, count=13):
        self.image_ids = list(range(count))
        self.file_names = [f"image {i}" for i in self.image_ids]
        self.sizes = [SIZES[i % 4] for i in self.image_ids]

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        height, width = self.sizes[index]
        image = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        masks = np.zeros((COUNTS[index % 6], height, width), dtype=bool)
        boxes = []
        for mask in masks:
            x, y, side = rng.integers(4, 16, 3).tolist()
            mask[y : y + side, x : x + side] = True
            image[mask] = 200
            boxes.append([x, y, x + side, y + side])
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        labels = torch.arange(len(masks)) % 2 + 1
        return Item(image, Target(boxes, labels, torch.from_numpy(masks)), index)


def configuration(*changes):
    config = small.config()
    transform = replace(config.transform, size_divisor=32)
    config = replace(config, num_classes=2, transform=transform)
    return override(config, "box_head.score_threshold=0.0", *changes)


def work(rank, folder, changes, options):
    """Train one step, then ten, evaluate, and run into a loss that is not finite."""
    torch.set_default_dtype(torch.float64)
    config, data = configuration(*changes), Mixed()
    options = {"batch_size": 4, "bar": False, "log_every": 1} | options
    one = train(config, data, f"{folder}/one", iterations=1, **options)
    gradients = {
        name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None
    }
    ten = train(config, data, f"{folder}/ten", iterations=10, evaluation=Mixed(5), **options)
    found = evaluate.detect(ten.model, data)
    return {
        "gradients": gradients,
        "state": {name: x.detach().clone() for name, x in ten.model.state_dict().items()},
        "metrics": ten.metrics,
        "found": found,
        "log": log.read(f"{folder}/ten/log.jsonl"),
        "failure": failure(rank, config, f"{folder}/failed", options),
    }


def failure(rank, config, folder, options):
    """Return the message of a run whose third image is NaN in the backbone of one process."""
    batch_losses = MaskRCNN.batch_losses

    def poisoned(self, batch, *arguments, **keywords):
        if 2 in batch.image_ids:
            batch = replace(batch, images=batch.images * torch.nan)
        return batch_losses(self, batch, *arguments, **keywords)

    MaskRCNN.batch_losses = poisoned
    try:
        train(config, Mixed(), folder, iterations=8, **options)
    except NotFiniteError as error:
        return str(error)
    finally:
        MaskRCNN.batch_losses = batch_losses


CASES = {
    "plain": ([], {}),
    "fixed shapes, synchronised norms and averaged weights": (
        ["backbone.norm=sync_batch", "optimizer.clip_gradient_norm=1.0"],
        {"fixed_shapes": True, "workers": 1, "ema": 0.9, "validation_losses": True},
    ),
}


def distance(found, expected):
    return max(
        float((found[name] - x).abs().max() / x.abs().max().clamp(min=1e-30))
        for name, x in expected.items()
        if x.is_floating_point()
    )


@pytest.mark.parametrize("case", CASES)
def test_two_and_four_processes_train_as_one(case, tmp_path):
    """Gradients, losses, weights after ten steps, detections and metrics, in float64."""
    try:
        one = work(0, str(tmp_path / "a"), *CASES[case])
    finally:
        torch.set_default_dtype(torch.float32)
    for count in (2, 4) if case == "plain" else (2,):
        folder = tmp_path / f"of {count}"
        changes, options = CASES[case]
        # Of the plain case, two processes take their images one after the other.
        options = options | ({"accumulate": 2} if (case, count) == ("plain", 2) else {})
        runs = several_processes.run(
            work, tmp_path / str(count), str(folder), changes, options, count=count
        )
        for run in runs:
            assert distance(run["gradients"], one["gradients"]) < 1e-9
            assert distance(run["state"], one["state"]) < 1e-9
            assert run["metrics"] == one["metrics"]
            # Each names the images of the process that failed, one process all of the batch.
            stage, _, images = run["failure"].partition(" (images ")
            assert stage == one["failure"].partition(" (images ")[0]
            assert images.startswith(("2)", "2, "))
        for line, expected in zip(runs[0]["log"], one["log"], strict=True):
            for name in line.keys() & {"loss", "rpn_box", "class", "mask", "gradient_norm"}:
                assert line[name] == pytest.approx(expected[name], rel=1e-6), name
        losses, expected = (log[-1].get("validation", {}) for log in (runs[0]["log"], one["log"]))
        assert losses == pytest.approx(expected, rel=1e-6)
        assert len(losses) == (5 if "validation_losses" in options else 0)
        first, *others = (run["found"] for run in runs)
        assert first and not any(others) and len(first) == len(one["found"])
        for result, expected in zip(first, one["found"], strict=True):
            assert result["image_id"] == expected["image_id"]
            assert result["score"] == pytest.approx(expected["score"], rel=1e-6)
        assert [p.name for p in (folder / "ten" / "checkpoints").iterdir()] == ["00000010"]


def test_what_several_processes_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr("accelerated.processes.number", lambda: 3)
    for config, batch_size, text in (
        (configuration(), 4, "--batch-size 4 is that of all 3 processes together"),
        (configuration("backbone.norm=batch"), 6, "--set backbone.norm=sync_batch"),
    ):
        with pytest.raises(ValueError, match=text):
            check_processes(config, batch_size)
    check_processes(configuration("backbone.norm=sync_batch"), 6)
    cpu = torch.device("cpu")
    for options, name in (((None, True), "--graph"), (("inductor", False), "--compile")):
        with pytest.raises(ValueError, match=f"{name} is for one process: leave it out"):
            check_execution(cpu, True, *options)
    check_execution(cpu, False, None, False)


def apart(rank, folder):
    """Give process 1 other data, and let the processes write after one another."""
    with pytest.raises(ValueError) as caught:
        train(configuration(), Mixed(13 - rank), folder, iterations=1, batch_size=2, bar=False)
    lines = []
    with group.in_turn():
        path = Path(folder) / "turns"
        lines = path.read_text().split() if path.exists() else []
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join([*lines, str(rank)]))
    return str(caught.value), lines, group.maximum(rank, 5 - rank), group.collect(rank)


def test_processes_need_the_same_data_and_take_turns(tmp_path):
    results = several_processes.run(apart, tmp_path / "store", str(tmp_path / "run"))
    (message, before, largest, all_), (other, after, same, none) = results
    assert message == other and message.startswith("process 1: data is '12 images, checksum")
    assert (before, after, largest, all_, none) == ([], ["0"], [1, 5], [0, 1], None)
    assert same == largest


def test_results_of_processes_are_put_in_order():
    parts = [[0, 3, 6], [1, 4], [2, 5]]
    assert group.alternate(parts) == list(range(7)) and group.alternate([[], []]) == []


def test_alone_a_process_agrees_with_itself():
    assert group.maximum(3, 1) == [3, 1] and group.share("x") == "x" and group.collect(1) == [1]
    group.require_same(data="any")
    with group.in_turn(), group.naming_missing():
        group.barrier()


def test_processes_that_start_again_read_nothing_of_the_former():
    """They meet in any order, in a store that keeps what those before wrote."""
    store = distributed.HashStore()
    # A process that died before the others came.
    store.set("start/1", "dead")
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        with ThreadPoolExecutor() as threads:
            tasks = {k: threads.submit(group._of_this_start, store, k, 3, 60.0) for k in order}
            parts = [tasks[k].result(60) for k in range(3)]
        assert not any(part.check(["address"]) for part in parts)
        parts[0].set("address", str(order))
        assert [part.get("address").decode() for part in parts] == [str(order)] * 3


def test_a_process_that_does_not_start_is_named():
    with pytest.raises(group.LostError, match=r"of 2 processes, 1 did not start in 0\.1 s"):
        group._of_this_start(distributed.HashStore(), 0, 2, 0.1)
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(group.LostError, match=r"of 2 processes, 0 did not start in 0\.1 s"):
        group._of_this_start(store, 1, 2, 0.1)
