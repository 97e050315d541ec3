"""The whole model: twin against twin, against torchvision, fixed shapes, empty images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import golden_runs, narrow

from accelerated import mask_head, mask_rcnn, shared_head
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Stages, Target
from accelerated.transform import collate, prepare
from accelerated.verify.equality import GOLDEN_MODEL, MODEL, assert_close, assert_equal
from reference import structures

LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
SHAPES, OBJECTS = ((96, 128), (80, 100)), (3, 2)


def valid_rows(record, name):
    """Return a padded field [N, S, ...] as the reference has it: the valid slots of each image."""
    return [
        rows[valid]
        for rows, valid in zip(getattr(record, name), record.proposal_valid, strict=True)
    ]


@pytest.mark.parametrize("name", narrow.PRESETS)
def test_detect_twins(rng, name):
    config = narrow.config(name)
    model, oracle = narrow.twins(config)
    images, _ = narrow.scene(rng, SHAPES, OBJECTS)
    model.train()
    record, expected_record = Stages(), structures.Stages()
    detections, expected = (
        model.detect(images, record=record),
        oracle.detect(images, record=expected_record),
    )
    assert model.training and all(m.training for m in model.modules()), "the mode is restored"
    maps = [key for key in expected_record.computed() if key[0] in "CP" and key[1:].isdigit()]
    assert maps == [key for key in record.computed() if key[0] in "CP" and key[1:].isdigit()]
    for key in ("images", *maps):
        assert_close(getattr(record, key), getattr(expected_record, key), MODEL["float64"], key)
    for key in ("rpn_logits", "rpn_deltas", "anchors"):
        for ours, theirs in zip(getattr(record, key), getattr(expected_record, key), strict=True):
            assert_close(ours, theirs, MODEL["float64"], key)
    for i in range(2):
        assert_close(
            valid_rows(record, "proposals")[i],
            expected_record.proposals[i],
            MODEL["float64"],
            "proposals",
        )
    assert sum(len(e.labels) for e in expected) > 4, "a test that finds nothing tests nothing"
    for actual, e in zip(detections, expected, strict=True):
        assert_equal(actual.labels, e.labels, "labels")
        assert_close(actual.boxes, e.boxes, MODEL["float64"], "boxes")
        assert_close(actual.scores, e.scores, MODEL["float64"], "scores")
        assert_equal(actual.masks, e.masks, "masks")


@pytest.mark.parametrize(
    ("name", "objects"),
    [
        *((name, OBJECTS) for name in narrow.PRESETS),
        *((name, n) for name in narrow.LAYOUTS for n in ((0, 2), (0, 0))),
    ],
)
def test_losses_twins(rng, name, objects):
    config = narrow.config(name)
    model, oracle = narrow.twins(config)
    images, targets = narrow.scene(rng, SHAPES, objects)
    priorities = narrow.priorities(rng, config, SHAPES, objects)
    record, expected_record = Stages(), structures.Stages()
    actual = model.losses(images, [Target(**t) for t in targets], priorities, record=record)
    expected = oracle.losses(
        images, [structures.Target(**t) for t in targets], priorities, record=expected_record
    )
    assert not model.training
    for key in ("rpn_labels", "rpn_matched", "rpn_sampled"):
        assert_equal(getattr(record, key), getattr(expected_record, key), key)
    deltas = record.rpn_target_deltas
    assert_close(deltas, expected_record.rpn_target_deltas, MODEL["float64"], "target deltas")
    assert deltas.any() == bool(sum(objects))
    sampled = record.roi_labels >= 0
    for key in ("sampled_rois", "roi_labels"):
        assert_close(
            getattr(record, key)[sampled],
            np.concatenate(getattr(expected_record, key)),
            MODEL["float64"],
            key,
        )
    for key in ("box_features", "class_logits", "box_deltas"):
        assert_close(
            getattr(record, key)[sampled.flatten()],
            getattr(expected_record, key),
            MODEL["float64"],
            key,
        )
    slots = int(config.box_head.batch_size * config.box_head.positive_fraction)
    foreground = (record.roi_labels[:, :slots] > 0).flatten()
    for key in ("mask_features", "mask_logits", "mask_targets"):
        assert_close(
            getattr(record, key)[foreground], getattr(expected_record, key), MODEL["float64"], key
        )
    assert tuple(actual) == tuple(expected) == LOSSES
    for loss in LOSSES:
        assert_close(actual[loss], expected[loss], MODEL["float64"], loss)
    if sum(objects):
        assert min(expected.values()) > 0


@pytest.mark.parametrize("objects", [OBJECTS, (0, 2), (0, 0)])
@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_every_parameter_has_a_finite_gradient(rng, name, objects):
    """Trained parameters have finite gradients with objects, in one image only, and without any."""
    config = narrow.config(name)
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, objects)
    sum(model.losses(images, [Target(**t) for t in targets]).values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{parameter_name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{parameter_name}: gradient not finite"
        else:
            assert parameter.grad is None
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    if objects == OBJECTS:
        assert touched == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(n.startswith("backbone") for n in touched)


@pytest.mark.parametrize("objects", [OBJECTS, (0, 0)])
@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_empty_slots_are_skipped_on_a_cpu(rng, name, objects, monkeypatch):
    """Losses, gradients, running statistics and detections are those with all slots computed."""
    config = narrow.config(name)
    images, targets = narrow.scene(rng, SHAPES, objects)
    priorities = narrow.priorities(rng, config, SHAPES, objects)
    rows, found = [], []
    for all_slots in (False, True):
        if all_slots:
            for module in (mask_rcnn, mask_head, shared_head):
                monkeypatch.setattr(module, "on_filled", lambda head, *inputs: head(*inputs))
        model = narrow.model(config)
        for head in (model.box_head, getattr(model.mask_head, "deconv", model.mask_head)):
            head.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        losses = model.losses(images, [Target(**t) for t in targets], priorities)
        sum(losses.values()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found.append(losses | gradients | dict(model.named_buffers()))
        for i, detections in enumerate(model.detect(images)):
            found[-1] |= {f"{key} {i}": value for key, value in vars(detections).items()}
    for key, expected in found[1].items():
        assert_close(found[0][key].detach(), expected.detach(), MODEL["float64"], key)
    # Box head and mask head in training, and again in detection.
    filled, slots = rows[:4], rows[4:]
    assert all(a <= b for a, b in zip(filled, slots, strict=True)) and filled[1] < slots[1]
    assert objects == OBJECTS or filled[1] == 1


def test_the_batch_does_not_matter_to_an_image(rng):
    """With frozen norms, detections are the same alone and in a batch of one padded size."""
    config = narrow.config("torchvision_r50_fpn")
    model = narrow.model(config)
    images, _ = narrow.scene(rng, ((96, 128), (70, 99)), (1, 1))
    together = model.detect(images)[0]
    alone = model.detect(images[:1])[0]
    assert_close(together.boxes, alone.boxes, MODEL["float64"])
    assert_equal(together.masks, alone.masks)


def test_slots_beyond_the_objects_do_not_matter(rng):
    """More ground-truth slots than objects (`max_objects`), the same losses."""
    config = narrow.config("torchvision_r50_fpn_v2")
    model = narrow.model(config).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    prepared = [
        prepare(i, Target(**t), config.transform, dtype=torch.float64)
        for i, t in zip(images, targets, strict=True)
    ]
    priorities = {
        k: torch.tensor(np.stack(v))
        for k, v in narrow.priorities(rng, config, SHAPES, (9, 9)).items()
    }
    results = []
    for slots in (3, 9):
        batch = collate(prepared, config.transform, SHAPES, max_objects=slots)
        own = priorities | {"roi": priorities["roi"][:, : config.rpn.post_nms_top_n_train + slots]}
        results.append(model.batch_losses(batch, own))
    for loss in LOSSES:
        assert_close(results[0][loss], results[1][loss].detach(), MODEL["float64"], loss)


def test_priorities_are_drawn_from_the_generator(rng):
    config = narrow.config("tiny")
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    targets = [Target(**t) for t in targets]
    one, same, other = (
        model.losses(images, targets, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert all(one[loss] == same[loss] for loss in LOSSES)
    assert one["rpn_objectness"] != other["rpn_objectness"]


def test_forward_follows_the_mode(rng):
    config = narrow.config("tiny")
    model = narrow.model(config)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    found = model(batch)
    assert found.boxes.shape == (
        2,
        config.box_head.max_detections,
        4,
    ) and found.mask_probabilities.shape[2:] == (28, 28)
    assert (found.labels[~found.valid] == 0).all() and (found.labels[found.valid] > 0).all()
    assert set(model.train()(batch)) == set(LOSSES)


def test_no_images(rng):
    model = narrow.model(narrow.config("tiny"))
    assert model.detect([]) == []
    with pytest.raises(ValueError, match="expected images"):
        model.losses([], [])
    with pytest.raises(ValueError, match="a target for each"):
        model.losses(narrow.scene(rng)[0], [])


@pytest.mark.parametrize("name", narrow.PRESETS)
def test_a_label_above_the_classes_is_refused(rng, name):
    config = narrow.config(name)
    images, (first, second) = narrow.scene(rng)
    high = config.num_classes + 1
    first["labels"][0] = high
    for side, kind in zip(narrow.twins(config), (Target, structures.Target), strict=True):
        with pytest.raises(ValueError, match=f"label {high} above num_classes {high - 1}"):
            side.losses(images, [kind(**first), kind(**second)])


@pytest.fixture(scope="module")
def finder():
    """A model that finds something in any picture."""
    config = narrow.config("tiny")
    head = replace(config.box_head, score_threshold=0.0)
    return narrow.model(replace(config, box_head=head), dtype=torch.float32)


def test_detect_takes_files_and_pictures(finder, tmp_path, recwarn):
    """Each gives what its array gives, without a warning."""
    array = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    grey = Image.fromarray(array[..., 0])
    read_only = np.asarray(Image.fromarray(array))
    assert not read_only.flags.writeable
    [expected] = finder.detect([array])
    [of_grey] = finder.detect([array[..., :1].repeat(3, 2)])
    cases = {
        "Path": (tmp_path / "a.png", expected),
        "str": (str(tmp_path / "a.png"), expected),
        "Pillow": (Image.fromarray(array), expected),
        "alpha": (Image.fromarray(array).convert("RGBA"), expected),
        "grey": (grey, of_grey),
        "palette": (grey.convert("P"), of_grey),
        "read-only": (read_only, expected),
        "mirrored": (array[:, ::-1][:, ::-1], expected),
        "tensor": (torch.from_numpy(array), expected),
    }
    found = [finder.detect([image])[0] for image, _ in cases.values()]
    assert len(expected.labels) > 3
    for name, detections, (_, wanted) in zip(cases, found, cases.values(), strict=True):
        for field, value in vars(wanted).items():
            assert_equal(getattr(detections, field), value, f"{name} {field}")
    [crops] = finder.detect([tmp_path / "a.png"], crops=True)
    for crop, mask in zip(crops.crops, expected.masks, strict=True):
        window = mask[crop.top :, crop.left :][: crop.pixels.shape[0], : crop.pixels.shape[1]]
        assert_equal(crop.pixels, window, "crop")
    assert not recwarn.list


def test_a_turned_picture_is_upright(finder, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    with pytest.warns(UserWarning, match=r"a\.png was turned upright") as caught:
        [found] = finder.detect([tmp_path / "a.png"])
    assert caught[0].filename == __file__
    [expected] = finder.detect([np.rot90(array, -1)])
    assert_equal(found.boxes, expected.boxes, "boxes")
    assert found.masks.shape[1:] == (80, 60)


def test_what_detect_refuses_says_what_to_do(finder, tmp_path):
    array = np.full((60, 80, 3), 7, np.uint8)
    for single in (array, torch.from_numpy(array), Image.fromarray(array), "a.png", tmp_path):
        with pytest.raises(ValueError, match=r"a list of images.*\[image\]"):
            finder.detect(single)
    (tmp_path / "text.png").write_text("no picture")
    for image, said in (
        (array[..., 0], "repeat a grey image three times"),
        (array.transpose(2, 0, 1), "move the channels last"),
        (Image.fromarray(array[..., 0].astype(np.int32)), "convert it to 8 bits"),
        (tmp_path / "text.png", "is not an image"),
    ):
        with pytest.raises(ValueError, match=said):
            finder.detect([image])
    with pytest.raises(ValueError, match=r"none\.png: no such file"):
        finder.detect([tmp_path / "none.png"])


def test_floats_in_0_to_1_are_warned_of(finder, recwarn):
    image = np.random.default_rng(0).random((60, 80, 3))
    finder.detect([image * 255, np.zeros((60, 80, 3))])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"never exceed 1, but 0\.\.255 is expected"):
        finder.detect([image])


def test_the_model_knows_its_class_names():
    model = narrow.model(narrow.config("tiny", num_classes=2))
    assert model.class_names == ["class 1", "class 2"]
    model.categories = [{"id": 7, "name": "disc"}, {"id": 3, "name": "box"}]
    assert model.class_names == ["disc", "box"]


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_float32_is_near_float64(rng, name):
    """With shared priorities and no close choice, losses keep the table's tolerance."""
    config = narrow.config(name)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    targets = [Target(**t) for t in targets]
    priorities = narrow.priorities(rng, config, SHAPES, OBJECTS)
    double, single = (
        narrow.model(config, dtype=dtype).losses(images, targets, priorities)
        for dtype in (torch.float64, torch.float32)
    )
    for loss in LOSSES:
        assert single[loss].dtype == torch.float32
        assert_close(single[loss], double[loss].detach(), MODEL["float32"], loss)


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_autocast(rng, name):
    """bfloat16 convolutions; boxes, scores and losses stay float32."""
    config = narrow.config(name)
    model = narrow.model(config, dtype=torch.float32)
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    record = Stages()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(
            images,
            [Target(**t) for t in targets],
            narrow.priorities(rng, config, SHAPES, OBJECTS),
            record=record,
        )
        found = model.detect(images)
    assert {getattr(record, key).dtype for key in record.computed() if key[0] == "P"} == {
        torch.bfloat16
    }
    for x in (
        *losses.values(),
        record.proposals,
        record.proposal_scores,
        record.sampled_rois,
        found[0].boxes,
        found[0].scores,
    ):
        assert x.dtype == torch.float32 and x.isfinite().all()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_compiles_to_one_graph(rng):
    """`torch.compile(fullgraph=True)`: the losses need no graph break or data-dependent shape."""
    config = narrow.config("tiny", mask_head=replace(narrow.config("tiny").mask_head, convs=1))
    model = narrow.model(config).train()
    images, targets = narrow.scene(rng, SHAPES, OBJECTS)
    batch = model.batch(images, [Target(**t) for t in targets])
    priorities = {
        k: torch.tensor(np.stack(v))
        for k, v in narrow.priorities(rng, config, SHAPES, (3, 3)).items()
    }
    eager = model.batch_losses(batch, priorities)
    compiled = torch.compile(model.batch_losses, backend="eager", fullgraph=True)(batch, priorities)
    for loss in LOSSES:
        assert_close(compiled[loss].detach(), eager[loss].detach(), MODEL["float64"], loss)


def test_triton_detects(rng):
    """The model finds the same on Triton's kernels (interpreted without a GPU) as in PyTorch."""
    config = narrow.config("tiny")
    config = replace(
        config,
        rpn=replace(config.rpn, post_nms_top_n_test=4, pre_nms_top_n_test=8),
        box_head=replace(
            config.box_head, max_detections=2, pooler=replace(config.box_head.pooler, output_size=3)
        ),
        mask_head=replace(config.mask_head, pooler=replace(config.mask_head.pooler, output_size=4)),
        fpn=replace(config.fpn, channels=4),
    )
    images, _ = narrow.scene(rng, ((48, 64),), (2,))
    expected, found = (
        narrow.model(config, backend=backend).detect(images)[0] for backend in ("torch", "triton")
    )
    assert len(expected.labels)
    assert_equal(found.labels, expected.labels)
    assert_close(found.boxes, expected.boxes, MODEL["float64"])
    assert_equal(found.masks, expected.masks)


def golden_model(run):
    """Ours with the weights of a recorded run."""
    model = MaskRCNN(run.config).double().eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in run.parameters.items()})
    return model


def check_training(run, model, record):
    """Losses and gradients of a recorded run."""
    losses = model.losses(
        run.images,
        [Target(**vars(target)) for target in run.targets],
        run.priorities(),
        record=record,
    )
    run.check_losses(losses)
    sum(losses.values()).backward()
    run.check_gradients({name: p.grad for name, p in model.named_parameters() if p.requires_grad})


@pytest.fixture(params=["subset", "complete"])
def torchvision(request):
    run = golden_runs.torchvision(request, request.param)
    return run, golden_model(run)


def test_torchvision_detections(torchvision):
    run, model = torchvision
    z = run.z
    for i, found in enumerate(model.detect(run.images)):
        assert_equal(found.labels, z[f"eval.out.labels.{i}"], "labels")
        assert_close(found.boxes, z[f"eval.out.boxes.{i}"], GOLDEN_MODEL, "boxes")
        assert_close(found.scores, z[f"eval.out.scores.{i}"], GOLDEN_MODEL, "scores")
        assert_equal(
            found.masks, golden_runs.unpacked(z, f"eval.out.masks_bool.{i}")[:, 0], "masks"
        )


def test_torchvision_losses_and_gradients(torchvision):
    run, model = torchvision
    record = Stages()
    check_training(run, model, record)
    assert_equal(
        record.rpn_labels,
        np.stack([run.z[f"train.rpn.labels.{i}"] for i in (0, 1)]),
        "labels of anchors",
    )


@pytest.fixture(params=golden_runs.DETECTRON2_RUNS, ids="-".join)
def detectron2(request):
    run = golden_runs.detectron2(request, *request.param)
    return run, golden_model(run)


def test_detectron2_detections(detectron2):
    """Compare in pixels of the network's input: the second image was recorded at another size."""
    run, model = detectron2
    z, record = run.z, Stages()
    found = model.detect(run.images, record=record)
    stages = {"C4": "res4", "P4": "p4"} if run.config.neck == "fpn" else {"C4": "res4"}
    for name, theirs in stages.items():
        golden_runs.check(getattr(record, name), z, f"eval.{theirs}")
    for name in ("class_logits", "box_deltas"):
        golden_runs.check(
            getattr(record, name)[record.proposal_valid.flatten()], z, f"eval.roi.{name}"
        )
    boxes, scores, labels, valid, _ = record.detections
    for i in (0, 1):
        assert_equal(labels[i][valid[i]] - 1, z[f"eval.det.classes.{i}"], "labels")
        assert_close(boxes[i][valid[i]], z[f"eval.det.boxes.{i}"], GOLDEN_MODEL, "boxes")
        assert_close(scores[i][valid[i]], z[f"eval.det.scores.{i}"], GOLDEN_MODEL, "scores")
        probabilities = record.mask_probabilities[i][valid[i]]
        golden_runs.check(probabilities[:, None], z, f"eval.det.mask_probs.{i}", 20)
    assert_equal(found[0].masks, golden_runs.unpacked(z, "eval.out.masks.0"), "masks")


def test_detectron2_losses_and_gradients(detectron2):
    run, model = detectron2
    record = Stages()
    check_training(run, model, record)
    for i in (0, 1):
        assert_equal(
            record.rpn_sampled[i], run.z[f"train.rpn.sampled_labels.{i}"], "sampled anchors"
        )
        assert_close(
            record.sampled_rois[i], run.z[f"train.roi.proposals.{i}"], GOLDEN_MODEL, "RoIs"
        )
        assert_equal(
            (record.roi_labels[i] - 1) % 6, run.z[f"train.roi.gt_classes.{i}"], "labels of RoIs"
        )
    objects = (record.roi_labels[:, : record.mask_targets.shape[0] // 2] > 0).flatten()
    assert_equal(
        record.mask_targets[objects],
        np.concatenate([run.z[f"train.roi.mask_targets.{i}"] for i in (0, 1)]),
        "mask targets",
    )
