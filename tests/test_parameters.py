"""The parameters of the model: what is missing or does not fit is named, and what is trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import narrow
from torch import nn

from accelerated.parameters import initialise
from reference import parameters
from reference.config import preset


def test_every_problem_is_named_at_once(rng):
    config = narrow.config("tiny")
    values = parameters.initial_parameters(config, rng)
    values["rpn.logits.bias"] = values["rpn.logits.bias"][:-1]
    values["extra.weight"] = values.pop("rpn.deltas.bias")
    with pytest.raises(ValueError) as error:
        parameters.check_parameters(values, config)
    for text in (
        "rpn.deltas.bias is missing",
        "extra.weight is unexpected",
        "rpn.logits.bias has shape [2], expected [3]",
    ):
        assert text in str(error.value)


def test_batch_counters_are_ignored(rng):
    config = narrow.config("tiny")
    values = parameters.initial_parameters(config, rng)
    counter = {"backbone.bn1.num_batches_tracked": np.array(3)}
    assert parameters.check_parameters(values | counter, config).keys() == values.keys()


def test_frozen_stages_norms_and_statistics_are_not_trained():
    config = preset("torchvision_r50_fpn")
    trained = set(parameters.trained_parameters(config))
    assert "backbone.layer1.0.conv1.weight" not in trained
    assert "backbone.layer2.0.conv1.weight" in trained
    assert "backbone.layer2.0.bn1.weight" not in trained
    batch = replace(config, backbone=replace(config.backbone, norm="batch", frozen_stages=0))
    trained = set(parameters.trained_parameters(batch))
    assert "backbone.layer2.0.bn1.weight" in trained
    assert "backbone.layer2.0.bn1.running_mean" not in trained


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 32, 3), nn.ConvTranspose2d(64, 32, 2)])
def test_convolutions_start_by_fan_out(layer):
    torch.manual_seed(0)
    initialise(layer)
    fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
    assert abs(layer.weight.std().item() / (2 / fan_out) ** 0.5 - 1) < 0.05
    assert (layer.bias == 0).all()


def test_fully_connected_layers_start_uniformly_by_fan_in():
    torch.manual_seed(0)
    layer = nn.Linear(300, 100)
    initialise(layer)
    assert abs(layer.weight.std().item() / (1 / 300) ** 0.5 - 1) < 0.05
    assert layer.weight.abs().max() <= (3 / 300) ** 0.5 and (layer.bias == 0).all()


def test_layers_without_bias_and_other_modules_are_accepted():
    initialise(nn.Conv2d(2, 2, 1, bias=False))
    norm = nn.BatchNorm2d(4)
    initialise(norm)
    assert (norm.weight == 1).all()
