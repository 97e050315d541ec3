"""The parameters of the model: what is missing or does not fit is named, and what is trained."""

from dataclasses import replace

import numpy as np
import pytest
from support import narrow

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
