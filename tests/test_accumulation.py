"""engine.accumulation: a batch worked on in parts is the batch, in less memory."""

import weakref
from dataclasses import replace

import pytest
import torch
from support import small
from test_group import Mixed, configuration

from accelerated.engine import accumulation, checkpoint, log
from accelerated.engine.failure import NotFiniteError
from accelerated.engine.settings import check_execution
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN
from reference.config import override


def run(output, accumulate, *changes, iterations=3, **options):
    options = {"batch_size": 4, "log_every": 1, "bar": False} | options
    config = configuration(*changes)
    return train(config, Mixed(), output, iterations=iterations, accumulate=accumulate, **options)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("normalizer", ["sampled", "batch_size"])
def test_parts_give_the_weights_and_losses_of_the_whole(normalizer, double, tmp_path):
    """Images of several sizes, half of them without an object: parts count differently."""
    change = f"rpn.loss_normalizer={normalizer}"
    steps = {"iterations": 3 if normalizer == "sampled" else 2}
    whole = run(tmp_path / "1", 1, change, **steps).model.state_dict()
    for parts in (2, 4) if normalizer == "sampled" else (4,):
        ours = run(tmp_path / str(parts), parts, change, **steps).model.state_dict()
        for name, tensor in whole.items():
            scale = tensor.abs().max().clamp(min=1e-30)
            assert (ours[name] - tensor).abs().max() <= 1e-9 * scale, name
        lines = zip(*(log.read(tmp_path / f"{n}" / "log.jsonl") for n in (1, parts)), strict=True)
        for line, other in lines:
            for name in ("rpn_objectness", "rpn_box", "class", "box", "mask", "gradient_norm"):
                # The log rounds losses to float32.
                assert other[name] == pytest.approx(line[name], rel=1e-6), name
    assert checkpoint.read(tmp_path / "4").settings["accumulate"] == 4


def test_only_one_part_has_activations_at_a_time(monkeypatch, tmp_path):
    """All parts but one run twice up to their RoIs; only one graph exists at a time."""
    passes, alive, features = [], [], MaskRCNN.features

    def watched(self, images, record=None):
        result = features(self, images, record)
        if torch.is_grad_enabled():
            assert not any(reference() is not None for reference in alive), "a graph is kept"
            alive[:] = [weakref.ref(x) for x in result.values()]
        passes.append((len(images), torch.is_grad_enabled()))
        return result

    monkeypatch.setattr(MaskRCNN, "features", watched)
    run(tmp_path, 4, iterations=1)
    assert passes == [(1, False)] * 3 + [(1, True)] * 4


def test_the_images_of_a_failed_part_are_named(monkeypatch, tmp_path):
    batch_losses = MaskRCNN.batch_losses

    def poisoned(self, batch, *arguments, **keywords):
        if 2 in batch.image_ids:
            batch = replace(batch, images=batch.images * torch.nan)
        return batch_losses(self, batch, *arguments, **keywords)

    monkeypatch.setattr(MaskRCNN, "batch_losses", poisoned)
    with pytest.raises(NotFiniteError, match=r"is not finite \(images 2\)"):
        run(tmp_path, 4, iterations=8)


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        (3, (), "--batch-size 4 cannot be worked on in --accumulate 3 equal parts: choose a mult"),
        (2, ("fpn.norm=batch",), "--accumulate: fpn.norm = batch averages over all images"),
        (2, ("mask_head.norm=sync_batch",), "add --set mask_head.norm=group or"),
    ],
)
def test_what_parts_cannot_do_is_refused(parts, changes, message):
    with pytest.raises(ValueError, match=message):
        accumulation.check(override(small.config(), *changes), parts, 4)
    accumulation.check(override(small.config(), *changes), 1, 3)


def test_parts_and_compiled_steps_exclude_each_other():
    with pytest.raises(ValueError, match="--accumulate and --compile exclude each other"):
        check_execution(torch.device("cpu"), True, "inductor", False, 2)
