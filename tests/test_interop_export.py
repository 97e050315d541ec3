"""Exported programs: in onnxruntime and by torch.export they detect what the model detects."""

import contextlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support import narrow
from torch import nn

from accelerated import interop, nms, roi_align, transform
from accelerated.command_line import cli
from accelerated.interop import aten_operators, export
from accelerated.mask_rcnn import MaskRCNN
from accelerated.verify.equality import REDUCTION, arbitrary_boxes, assert_close, assert_equal
from reference.config import from_dict, override, preset

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH, BATCH = 96, 160, 2
# The largest disagreement of two float32 programs of the same model.
TOLERANCE = REDUCTION["float32"]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def config(name):
    """A narrow preset that resizes, of few layers."""
    sizes = replace(preset(name).transform, min_size=(HEIGHT,), max_size=WIDTH)
    narrowed = narrow.config(name, transform=sizes)
    return replace(narrowed, backbone=replace(narrowed.backbone, depth=18))


def photographs(rng):
    """Three smooth images of different shapes, one of which fills the program's."""
    shapes = ((48, 80), (70, 90), (120, 160))
    return [
        np.array(
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
                shape[::-1], Image.Resampling.BICUBIC
            )
        )
        for shape in shapes
    ]


def reading(model):
    """Return what stands for `interop.read_model`."""
    loaded = interop.Loaded("checkpoint.pth", model, None, frozenset(), [])
    return lambda path, preset, changes, names: loaded


def run_command(*arguments):
    """Return exit code, standard output and standard error of `maskrcnn export`."""
    out, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as stop,
    ):
        patch.setattr(sys, "argv", ["maskrcnn", "export", *map(str, arguments)])
        cli.main()
    return stop.value.code or 0, out.getvalue(), error.getvalue()


class Exported(NamedTuple):
    """A model, the folder of model.onnx and model.pt2, what the command said, and both programs.

    `graph` is that of model.pt2; `programs` are functions from images and sizes to outputs.
    """

    model: MaskRCNN
    folder: Path
    said: str
    graph: torch.export.ExportedProgram
    programs: dict


@pytest.fixture(scope="module", params=["torchvision_r50_fpn", "detectron2_r50_c4"])
def exported(request, tmp_path_factory):
    model = narrow.model(config(request.param), dtype=torch.float32)
    folder = tmp_path_factory.mktemp(request.param)
    paths = folder / "model.onnx", folder / "model.pt2"
    with pytest.MonkeyPatch.context() as patch:
        # The file does not tell the configuration of a narrow model.
        patch.setattr(interop, "read_model", reading(model))
        code, said, error = run_command("checkpoint.pth", *paths, "--batch-size", BATCH)
    assert (code, error) == (0, "")
    running = session(paths[0])
    loaded = torch.export.load(paths[1])
    program = loaded.module()
    programs = {
        "onnx": lambda images, sizes: running.run(None, {"images": images, "sizes": sizes}),
        "pt2": lambda *inputs: program(*map(torch.from_numpy, inputs)),
    }
    return Exported(model, folder, said, loaded, programs)


def expected(model, photos):
    """What the model detects in images padded as the program's."""
    prepared = [transform.prepare(photo, None, model.config.transform) for photo in photos]
    shapes = [photo.shape[:2] for photo in photos]
    pad_to = (HEIGHT, WIDTH)
    batch = transform.collate(prepared, model.config.transform, shapes, pad_to=pad_to)
    return model.batch_detections(batch)


def test_the_command_says_what_it_wrote(exported):
    model, folder, said, *_ = exported
    written, again, *described = said.splitlines()
    assert written.startswith(f"Written to {folder}/model.onnx: ") and "model.pt2" in again
    side = 28 if model.config.neck == "fpn" else 14
    for line, beginning in zip(
        described,
        (
            f"images float32 [2, 3, {HEIGHT}, {WIDTH}] input: RGB",
            "sizes int64 [2, 2] input: height",
            "boxes float32 [2, 12, 4] x1",
            "scores float32 [2, 12] falling",
            "labels int64 [2, 12] from 1",
            "valid bool [2, 12] whether",
            f"mask_probabilities float32 [2, 12, {side}, {side}] inside",
        ),
        strict=True,
    ):
        assert " ".join(line.split()).startswith(beginning)


def test_programs_detect_what_the_model_detects(exported, rng):
    model, programs = exported.model, exported.programs
    photos = photographs(rng)
    for pair in (photos[:2], photos[1:]):
        wanted = expected(model, pair)
        assert wanted.valid.any()
        inputs = export.program_inputs(pair, model.config, HEIGHT, WIDTH)
        # What lies outside of an image is not read.
        for image, (height, width) in zip(*inputs, strict=True):
            image[:, height:], image[:, :, width:] = np.nan, 1000
        for name, run in programs.items():
            found = run(*inputs)
            assert len(found) == len(wanted)
            for field, actual, value in zip(wanted._fields, found, wanted, strict=True):
                if field == "mask_probabilities":
                    # In empty slots they mean nothing.
                    actual, value = np.asarray(actual)[wanted.valid], value[wanted.valid]
                exact = field in ("labels", "valid")
                assert_close(actual, value, 0 if exact else TOLERANCE, f"{name}: {field}")


def test_an_image_without_detections(exported):
    """No RoI is left for either branch: the image has no pixels, so that proposals have no area."""
    images = np.zeros((BATCH, 3, HEIGHT, WIDTH), np.float32)
    for run in exported.programs.values():
        boxes, scores, labels, valid, _ = run(images, np.zeros((BATCH, 2), np.int64))
        assert not np.asarray(valid).any()
        for output in (boxes, scores, labels):
            assert not np.asarray(output).any()


@pytest.mark.parametrize("exported", ["torchvision_r50_fpn"], indirect=True)
def test_the_snippet_of_the_documentation(exported, rng, monkeypatch):
    """It finds what `detect` finds in a photograph that fills the program's images."""
    model, folder, *_ = exported
    photo = photographs(rng)[0]
    Image.fromarray(photo).save(folder / "photo.png")
    text = (ROOT / "docs" / "export.md").read_text().replace("photo.jpg", "photo.png")
    around, by_torch = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    # The document's program takes one image, this one two.
    around = around.replace("[photo]", f"[photo] * {BATCH}")
    monkeypatch.chdir(folder)
    names = {}
    exec(around, names)
    [wanted] = model.detect([photo])
    assert len(wanted.labels) > 0
    assert_equal(names["labels"], wanted.labels)
    assert names["names"] == [f"class {label}" for label in wanted.labels]
    assert_close(names["boxes"], wanted.boxes, TOLERANCE)
    assert_close(names["scores"], wanted.scores, TOLERANCE)
    # A pixel may lie within rounding of the threshold.
    assert (names["pixels"] != wanted.masks).float().mean() < 1e-3
    exec(by_torch, names)
    assert_close(names["outputs"][1][0, : len(wanted.scores)], wanted.scores, TOLERANCE)
    stored = names["stored"]
    assert from_dict(json.loads(stored["config"])) == model.config
    assert json.loads(stored["categories"]) == names["categories"]


def test_programs_need_nothing_of_this_project(exported):
    """All their operators are the standard's or PyTorch's own."""
    model = onnx.load(exported.folder / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert {entry.domain for entry in model.opset_import} == {""}
    graphs = [
        part.graph for part in exported.graph.graph_module.modules() if hasattr(part, "graph")
    ]
    targets = [n.target for graph in graphs for n in graph.nodes if n.op == "call_function"]
    spaces = {target.namespace for target in targets if hasattr(target, "namespace")}
    assert spaces == {"aten", "higher_order"} and len(graphs) == 5


THRESHOLDS = (0.3, 0.5, 0.7)


class Operators(nn.Module):
    """Suppression at several thresholds, and RoIAlign with each convention."""

    def forward(self, boxes, valid, fine, coarse, rois, image_index, level_index):
        kept = [nms.keep_mask(boxes, valid, threshold) for threshold in THRESHOLDS]
        pooled = [
            roi_align.multilevel(
                [fine, coarse],
                rois,
                image_index,
                level_index,
                scales=[0.25, 0.125],
                output_size=(3, 2),
                sampling_ratio=sampling_ratio,
                aligned=aligned,
            )
            for sampling_ratio in (0, 2)
            for aligned in (False, True)
        ]
        return (*kept, *pooled)


def operands(rng):
    """Boxes without area, an empty row; RoIs that leave the map, padding, inverted ones."""
    corner, side = rng.uniform(0, 60, (3, 50, 2)), rng.uniform(0, 40, (3, 50, 2))
    side[0, :3] = 0
    valid = rng.uniform(size=(3, 50)) < 0.8
    valid[2] = False
    boxes = np.concatenate([corner, corner + side], 2)
    # IoU 0.5 is no overlap above 0.5; IoU 0.3, rounded to float32, is one above 0.3.
    boxes[1, :4], valid[1, :4] = [[0, 0, 10, height] for height in (10, 7, 5, 3)], True
    corner, side = rng.uniform(-20, 70, (40, 2)), rng.uniform(0, 60, (40, 2))
    rois = np.concatenate([corner, corner + side], 1)
    rois[5:8] = rois[5:8][:, [2, 1, 0, 3]]
    maps = [rng.normal(size=(2, 3, 16 >> level, 20 >> level)) for level in range(2)]
    image, level = rng.integers(-1, 2, 40), rng.integers(0, 2, 40)
    image[5:8] = 0
    return (
        torch.from_numpy(boxes).float(),
        torch.from_numpy(valid),
        *(torch.from_numpy(x).float() for x in maps),
        torch.from_numpy(rois).float(),
        torch.from_numpy(image),
        torch.from_numpy(level),
    )


def check_operators(actual, wanted):
    for i, (a, w) in enumerate(zip(actual, wanted, strict=True)):
        assert w.any()
        assert_close(a, w, 0 if i < len(THRESHOLDS) else arbitrary_boxes("float32", 16, 20), str(i))


def test_operators_of_programs(rng, tmp_path):
    """Alone, with operands that the model does not meet."""
    from accelerated.interop import onnx_operators

    inputs = operands(rng)
    wanted = Operators()(*inputs)
    traced = torch.export.export(Operators(), inputs)
    check_operators(
        traced.run_decompositions(aten_operators.DECOMPOSITIONS).module()(*inputs), wanted
    )
    with export.quiet():
        torch.onnx.export(
            traced,
            f=tmp_path / "operators.onnx",
            opset_version=onnx_operators.OPSET,
            custom_translation_table=onnx_operators.TRANSLATIONS,
            verbose=False,
        )
    running = session(tmp_path / "operators.onnx")
    names = [entry.name for entry in running.get_inputs()]
    values = [x.numpy() for x in inputs]
    check_operators(running.run(None, dict(zip(names, values, strict=True))), wanted)


@pytest.fixture
def model():
    return narrow.model(narrow.config("torchvision_r50_fpn"), dtype=torch.float32)


SHAPE = {"height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    "name, shape, said",
    [
        ("model.pth", SHAPE, "ends in .pt2 or .onnx"),
        ("there.onnx", SHAPE, "already exists"),
        (
            "model.pt2",
            SHAPE | {"height": 100},
            "height 100: expected a multiple of 32, like 128",
        ),
        ("model.pt2", SHAPE | {"width": 0}, "width 0: expected a multiple of 32, like 32"),
    ],
)
def test_what_cannot_be_written(model, tmp_path, name, shape, said):
    (tmp_path / "there.onnx").touch()
    with pytest.raises(ValueError, match=re.escape(said)):
        export.export(model, tmp_path / "other.pt2", tmp_path / name, **shape)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


@pytest.mark.parametrize("change", ["operator=roi_pool", "aggregate=max"])
def test_operators_without_translation(tmp_path, change):
    changed = override(narrow.config("torchvision_r50_fpn"), f"mask_head.pooler.{change}")
    with pytest.raises(ValueError, match=r"cannot be exported"):
        export.export(narrow.model(changed), tmp_path / "model.pt2", **SHAPE)


def test_onnx_is_float32(model, tmp_path):
    with pytest.raises(ValueError, match=r"use model.float\(\)"):
        export.export(model.double(), tmp_path / "model.onnx", **SHAPE)


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"onnx and onnxscript: pip install .*\[onnx\]"):
        export.export(model, tmp_path / "model.onnx", **SHAPE)


def test_shapes_of_programs(model):
    assert export.program_shape(preset("torchvision_r50_fpn")) == (800, 1344)
    assert export.program_shape(preset("detectron2_r50_c4")) == (800, 1333)
    with pytest.raises(ValueError, match="give height and width"):
        export.program_shape(model.config)
    with pytest.raises(ValueError, match=r"97 x 10 pixels .* larger height"):
        export.program_inputs([np.zeros((97, 10, 3))], model.config, **SHAPE)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["model.pt2"], "give height and width"),
        (["model.onnx", "--height", 96, "--width", 100], "expected a multiple of 32"),
        (["model.pt2", "there.onnx", "--height", 96, "--width", 96], "already exists"),
    ],
)
def test_the_command_explains_bad_input_in_a_line(model, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(interop, "read_model", reading(model))
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    code, out, error = run_command("checkpoint.pth", *arguments)
    assert code == 2 and said in error and out == "" and error.count("\n") == 1
    assert [*Path().iterdir()] == [Path("there.onnx")]
