"""One-field variants of the presets: twins agree, also on Triton's kernels; a short run each."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import narrow, small
from test_training_step import compare, draw

from accelerated.engine import checkpoint
from accelerated.engine.evaluate import categories, evaluate
from accelerated.engine.failure import first_failure
from accelerated.engine.log import read
from accelerated.engine.predict import predict
from accelerated.engine.train import train
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Target
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference.config import Optimizer, override

SHAPES, OBJECTS = ((64, 96), (50, 80)), (3, 2)
VARIANTS = [
    ("torchvision_r50_fpn", ["mask_head.kind=mlp", "mask_head.mlp_channels=24"]),
    ("tiny", ["mask_head.kind=none"]),
    ("detectron2_r50_c4", ["mask_head.kind=none"]),
    ("torchvision_r50_fpn", ["mask_head.loss=softmax"]),
    ("detectron2_r50_fpn", ["mask_head.loss=softmax"]),
    ("torchvision_r50_fpn", ["mask_head.class_agnostic=true"]),
    ("detectron2_r50_c4", ["mask_head.class_agnostic=true", "mask_head.loss=softmax"]),
    ("tiny", ["box_head.kind=mean"]),
    *(
        ("tiny", [f"{head}.pooler.operator={operator}" for head in ("box_head", "mask_head")])
        for operator in ("roi_pool", "roi_warp")
    ),
    *(
        (
            "paper_r50_c4",
            [f"{head}.pooler.operator={operator}" for head in ("box_head", "mask_head")],
        )
        for operator in ("roi_pool", "roi_warp")
    ),
    ("tiny", ["box_head.pooler.aggregate=max", "mask_head.pooler.aggregate=max"]),
    ("paper_vgg16", ["box_head.pooler.aggregate=max", "box_head.pooler.operator=roi_warp"]),
    *(
        ("detectron2_r50_c4", [f"backbone.norm={norm}"])
        for norm in ("batch", "sync_batch", "group")
    ),
    *(("paper_r50_c5", [f"backbone.norm={norm}"]) for norm in ("batch", "group")),
    ("detectron2_r50_dc5", ["backbone.groups=2", "backbone.norm=group"]),
    (
        "torchvision_r50_fpn_v2",
        [f"{part}.norm=sync_batch" for part in ("backbone", "fpn", "box_head", "mask_head")],
    ),
]


def variant(name, assignments):
    """Fewer proposals than places to sample: some slots stay empty, and must not count."""
    config = narrow.config(name)
    for assignment in assignments:
        config = override(config, assignment)
    return replace(
        config,
        box_head=replace(config.box_head, batch_size=12),
        rpn=replace(config.rpn, post_nms_top_n_train=8),
    )


@pytest.mark.parametrize(
    ("name", "assignments"), VARIANTS, ids=lambda x: x if isinstance(x, str) else ",".join(x)
)
def test_twins(rng, name, assignments):
    """Detections with the running statistics that a step of training has moved."""
    config = variant(name, assignments)
    model, oracle = narrow.twins(config)
    images, targets, priorities = draw(rng, config, SHAPES, OBJECTS)
    gradients = compare(model, oracle, (images, targets, priorities), MODEL["float64"])
    assert all(
        gradient.any() for name, gradient in gradients.items() if "fpn.output" not in name
    ), "not every level has an RoI"
    for found, expected in zip(model.detect(images), oracle.detect(images), strict=True):
        assert len(expected.labels), "a test that finds nothing tests nothing"
        assert_equal(found.labels, expected.labels, "labels")
        assert_close(found.boxes, expected.boxes, MODEL["float64"], "boxes")
        assert_close(found.scores, expected.scores, MODEL["float64"], "scores")
        if config.mask_head.kind == "none":
            assert found.masks is expected.masks is None
        else:
            assert_equal(found.masks, expected.masks, "masks")


@pytest.mark.parametrize(
    ("name", "operator"), [("detectron2_r50_c4", "roi_align"), ("paper_r50_c4", "roi_warp")]
)
def test_triton_twin(rng, name, operator):
    """The shared stage behind Triton's kernels (interpreted without a GPU), RoIs rounded or not."""
    config = variant(
        name,
        [
            f"{head}.pooler.{field}"
            for head in ("box_head", "mask_head")
            for field in (f"operator={operator}", "output_size=2")
        ],
    )
    config = replace(
        config,
        backbone=replace(config.backbone, width=4),
        rpn=replace(
            config.rpn,
            pre_nms_top_n_train=12,
            post_nms_top_n_train=5,
            pre_nms_top_n_test=8,
            post_nms_top_n_test=3,
        ),
        box_head=replace(config.box_head, batch_size=4, max_detections=2),
    )
    model, oracle = narrow.twins(config, backend="triton")
    images, targets, priorities = draw(rng, config, ((48, 64),), (2,))
    compare(model, oracle, (images, targets, priorities), MODEL["float64"])
    [found], [expected] = model.detect(images), oracle.detect(images)
    assert_equal(found.labels, expected.labels)
    assert_close(found.boxes, expected.boxes, MODEL["float64"])
    assert_equal(found.masks, expected.masks)


@pytest.mark.parametrize("name", ["detectron2_r50_c4", "paper_vgg16"])
def test_compiles_to_one_graph(rng, name):
    """`torch.compile(fullgraph=True)` without a pyramid: no graph break, no dynamic shape."""
    config = variant(name, ["backbone.depth=18"] if name == "paper_vgg16" else [])
    model = narrow.model(config).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    priorities = {
        k: torch.tensor(np.stack(v))
        for k, v in narrow.priorities(rng, config, SHAPES, (3, 3)).items()
    }
    eager = model.batch_losses(batch, priorities)
    compiled = torch.compile(model.batch_losses, backend="eager", fullgraph=True)(batch, priorities)
    for name, loss in eager.items():
        assert_close(compiled[name].detach(), loss.detach(), MODEL["float64"], name)


def on_shapes(name, *assignments):
    """For 64-pixel shapes and two steps."""
    config = narrow.config(
        name,
        num_classes=3,
        optimizer=Optimizer(batch_size=2, warmup_iterations=1, clip_gradient_norm=1.0),
    )
    for assignment in (
        "transform.min_size=[64]",
        "transform.max_size=64",
        "box_head.score_threshold=0.0",
        *assignments,
    ):
        config = override(config, assignment)
    return config


@pytest.mark.parametrize(
    "config",
    [
        on_shapes("detectron2_r50_c4", "backbone.norm=batch"),
        on_shapes("paper_vgg16"),
        on_shapes("tiny", "mask_head.kind=none"),
    ],
    ids=["c4", "vgg", "no masks"],
)
def test_train_evaluate_predict(config, tmp_path):
    dataset = small.shapes(3)
    result = train(
        config,
        dataset,
        tmp_path / "run",
        iterations=2,
        batch_size=2,
        log_every=1,
        evaluation=dataset,
        bar=False,
    )
    kinds = ["bbox"] if config.mask_head.kind == "none" else ["bbox", "segm"]
    assert list(result.metrics) == kinds
    steps = [line for line in read(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(steps) == 2 and all(
        np.isfinite(line["loss"]) and ("mask" in line) == ("segm" in kinds) for line in steps
    )

    stored = checkpoint.read(tmp_path / "run")
    assert stored.config == config
    metrics = evaluate(result.model, dataset, output=tmp_path / "evaluation")
    assert list(metrics) == kinds
    entries = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert entries and all(("segmentation" in entry) == ("segm" in kinds) for entry in entries)

    Image.fromarray(dataset[0].image).save(tmp_path / "one.png")
    found = predict(
        result.model,
        [tmp_path / "one.png"],
        tmp_path / "pictures",
        categories=categories(dataset),
        threshold=0.0,
    )
    assert (
        not found.failed
        and found.predictions["annotations"]
        and (tmp_path / "pictures" / "one.png").exists()
    )


@pytest.mark.parametrize(
    ("name", "spoilt", "stage"),
    [("detectron2_r50_c4", "layer3.5", "C4"), ("paper_vgg16", "conv1_2", "C1")],
)
def test_a_failure_is_found_in_a_single_map(rng, name, spoilt, stage):
    """The first stage that is not finite, whatever the stages are called."""
    model = narrow.model(variant(name, ["backbone.frozen_stages=0"])).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    module = dict(model.backbone.named_modules())[spoilt]
    module.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    assert (
        first_failure(model, lambda record: model.batch_losses(batch, record=record), batch)
        == stage
    )


def test_a_model_without_masks_has_no_mask_parameters():
    model = MaskRCNN(variant("tiny", ["mask_head.kind=none"]))
    assert model.mask_head is None and not [
        name for name in model.state_dict() if name.startswith("mask_head")
    ]
