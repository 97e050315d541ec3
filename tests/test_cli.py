"""The command line as a user types it: every command on small data, and bad input."""

import json
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from support import small

import accelerated
from accelerated.command_line import cli, loading
from accelerated.data import synthetic
from accelerated.engine import checkpoint

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "predict",
    "report",
    "verify",
    "import",
    "inspect",
    "weights",
    "convert",
    "export",
    "ablate",
    "benchmark",
    "doctor",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Write six small images; return (json, image folder)."""
    return synthetic.ShapesDataset(6, size=64).write_coco(tmp_path_factory.mktemp("shapes"))


def training(shapes, output, iterations=2):
    changes = small.CHANGES
    where = ("--data", shapes[0], "--images", shapes[1], "--output", output)
    return (
        "train",
        *where,
        *changes,
        "--iterations",
        iterations,
        "--batch-size",
        2,
        "--device",
        "cpu",
    )


@pytest.fixture
def trained(command, shapes, tmp_path):
    folder = tmp_path / "run"
    code, _, error = command(*training(shapes, folder), "--val", shapes[0])
    assert code == 0, error
    return folder


def test_help_is_quick_and_names_every_command():
    code = """
import sys
from accelerated.command_line import cli
cli.app(["--help"], standalone_mode=False)
assert not {"torch", "triton"} & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert set(COMMANDS) == set(cli.COMMANDS)
    assert all(command in shown.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    """Help texts are sentences; that of a command begins with one that fits a line."""
    typed = typer.main.get_command(cli.app).commands[command]
    assert re.fullmatch(r"[A-Z].{,85}\.", typed.help.splitlines()[0])
    for parameter in typed.params:
        if parameter.name != "help":
            assert re.match(r"[A-Z].*[.)]$", parameter.help or ""), parameter.name


def test_version_of_the_module(tmp_path):
    command = [sys.executable, "-m", "accelerated", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.stdout == f"maskrcnn {accelerated.__version__}\n", shown.stderr


def test_train_writes_weights_log_and_curve(trained):
    assert checkpoint.read(trained).iteration == 2
    assert [category["name"] for category in checkpoint.read(trained).categories] == [
        "disc",
        "rectangle",
        "triangle",
    ]
    assert (trained / "log.jsonl").exists() and Image.open(trained / "loss.png").size[0] > 500


def test_resume_goes_on(command, shapes, trained):
    # There is a run already.
    assert command(*training(shapes, trained))[0] == 2
    code, out, error = command(*training(shapes, trained, 3), "--resume")
    assert code == 0 and "Trained for 3 steps" in out, error
    assert checkpoint.read(trained).iteration == 3


def test_fixed_shapes_and_what_a_graph_needs(command, shapes, tmp_path):
    words = training(shapes, tmp_path / "run", 1)
    for options, said in (
        (("--graph", "--fixed-shapes"), "--graph needs a CUDA device, not cpu"),
        (("--compile",), "add --fixed-shapes"),
    ):
        code, _, error = command(*words, *options)
        assert code == 2 and said in error and len(error.strip().splitlines()) == 1
    assert command(*words, "--fixed-shapes")[0] == 0
    assert checkpoint.read(tmp_path / "run").settings["fixed_shapes"] is True


def test_evaluate(command, shapes, trained, tmp_path):
    code, out, _ = command(
        "evaluate",
        trained,
        "--data",
        shapes[0],
        "--images",
        shapes[1],
        "--output",
        tmp_path / "e",
        "--device",
        "cpu",
    )
    assert code == 0 and "Average precision" in out and "rectangle" in out
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["segm"]["AP"] is not None
    assert isinstance(json.loads((tmp_path / "e" / "results.json").read_text()), list)


def test_problems_of_data_stand_under_its_name(command, shapes, tmp_path):
    content = json.loads(shapes[0].read_text())
    content["annotations"][0]["bbox"][2] = -3
    data = tmp_path / "wrong.json"
    data.write_text(json.dumps(content))
    code, _, error = command(*training((data, shapes[1]), tmp_path / "out", 1))
    assert code == 2 and error.startswith(f"maskrcnn: {data}: the data has 1 problem:\n")


def test_predict_does_the_good_pictures_and_names_the_bad(command, shapes, trained, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    words = (
        "predict",
        trained,
        shapes[1] / "00000[12].png",
        bad,
        "--output",
        tmp_path / "p",
        "--threshold",
        0,
        "--device",
        "cpu",
    )
    code, out, error = command(*words)
    assert code == 2 and "in 2 images" in out
    assert len(error.strip().splitlines()) == 1 and "bad.jpg" in error
    # A small picture is drawn larger.
    assert Image.open(tmp_path / "p" / "000001.png").size == (640, 640)
    predictions = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert len(predictions["images"]) == 2 and {
        a["category_id"] for a in predictions["annotations"]
    } <= {
        1,
        2,
        3,
    }


def test_predict_hands_its_options_on(command, shapes, trained, tmp_path, monkeypatch):
    given = {}

    def predict(model, images, output, **options):
        given.update(options, images=images, output=output)
        raise ValueError("That is all.")

    monkeypatch.setattr("accelerated.engine.predict.predict", predict)
    words = ("predict", trained, shapes[1], "--output", tmp_path, "--device", "cpu", "--recursive")
    words += ("--threshold", 0.25, "--exif", "ignore", "--save", "json,yolo")
    code, _, error = command(*words)
    assert code == 2 and "That is all." in error
    expected = {"threshold": 0.25, "recursive": True, "exif": "ignore", "saved": ("json", "yolo")}
    expected |= {"output": tmp_path, "amp": False, "compile": None, "graph": False}
    assert expected.items() <= given.items()
    assert list(map(str, given["images"])) == [str(shapes[1])]
    assert [c["name"] for c in given["categories"]] == ["disc", "rectangle", "triangle"]


def test_verify_interprets_kernels_unless_there_is_a_gpu(command, shapes, trained, monkeypatch):
    def select(device, backend, interpret=False):
        raise ValueError(f"{device}, {backend}, {interpret}")

    monkeypatch.setattr(loading, "select_device", select)
    words = ("verify", trained, shapes[1] / "000001.png", "--device", "cpu")
    assert "cpu, auto, True" in command(*words)[2]


def test_verify(command, shapes, trained):
    code, out, error = command(
        "verify", trained, shapes[1] / "000001.png", "--proposals", 2, "--device", "cpu"
    )
    assert code == 0 and "agree in all" in out, out + error
    assert all(
        stage in out for stage in ("images", "rpn_logits", "class_logits", "mask_logits", "masks")
    )


def test_verify_a_training_step(command, shapes, trained, monkeypatch):
    """Several images form one batch, annotated in the json."""
    from accelerated.verify import training

    monkeypatch.setattr(training, "BACKENDS", ("torch",))
    pictures = (shapes[1] / "000002.png", shapes[1] / "000001.png")
    objects = [a["image_id"] for a in json.loads(shapes[0].read_text())["annotations"]]
    code, out, error = command(
        "verify",
        "--train",
        trained,
        *pictures,
        "--data",
        shapes[0],
        "--proposals",
        2,
        "--device",
        "cpu",
    )
    assert code == 0 and "agree in all 5 losses" in out, out + error
    assert f"2 images with {sum(n in (1, 2) for n in objects)} objects" in out
    for section in ("losses", "gradients", "new weights"):
        assert section in out
    assert out.count("mask_head.logits.bias") == 2 and "differs" not in out


def test_verify_fails_on_a_difference(command, shapes, trained, monkeypatch):
    from accelerated.verify import detection

    exact = detection.interop.parameters

    def spoilt(model, dtype):
        return {
            name: value * (1 + 1e-6) if name == "rpn.logits.weight" else value
            for name, value in exact(model, dtype).items()
        }

    monkeypatch.setattr(detection.interop, "parameters", spoilt)
    monkeypatch.setattr(detection, "BACKENDS", ("torch",))
    code, out, _ = command("verify", trained, shapes[1] / "000001.png", "--device", "cpu")
    assert code == 1 and "first in rpn_logits" in out


def test_verify_a_training_step_without_annotations(command, shapes, trained, monkeypatch):
    from accelerated.verify import training
    from reference import optimizer

    monkeypatch.setattr(training, "BACKENDS", ("torch",))
    words = (
        "verify",
        "--train",
        trained,
        shapes[1] / "000001.png",
        "--threshold",
        0,
        "--device",
        "cpu",
    )
    code, out, _ = command(*words)
    assert code == 0 and "own detections" in out and "with 0 objects" not in out
    exact = optimizer.step
    monkeypatch.setattr(
        optimizer,
        "step",
        lambda p, g, state, rate, config: exact(p, g, state, rate * (1 + 1e-3), config),
    )
    code, out, _ = command(*words)
    assert code == 1 and "new weights, first in" in out


def test_inspect_shows_counts_and_draws_a_sample(command, shapes, tmp_path):
    code, out, _ = command(
        "inspect",
        "--data",
        shapes[0],
        "--images",
        shapes[1],
        "--output",
        tmp_path / "sheet.png",
        "--samples",
        4,
    )
    assert code == 0 and "triangle" in out
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape == (76, 4 * 70 + 6, 3)


@pytest.fixture
def broken(shapes, tmp_path):
    """Write a json in which the second annotation has a negative width."""
    content = json.loads(shapes[0].read_text())
    content["annotations"][1]["bbox"][2] = -5
    (tmp_path / "broken.json").write_text(json.dumps(content))
    return tmp_path / "broken.json"


def test_broken_data_is_listed_refused_and_skipped(command, shapes, broken, tmp_path):
    code, out, _ = command("inspect", "--data", broken, "--images", shapes[1])
    assert code == 1 and "negative" in out and "--skip-invalid" in out
    code, _, error = command(*training((broken, shapes[1]), tmp_path / "run"))
    assert (
        code == 2
        and "annotation 2" in error
        and "--skip-invalid" in error
        and "Traceback" not in error
    )
    assert not (tmp_path / "run").exists()
    code, _, error = command(*training((broken, shapes[1]), tmp_path / "run"), "--skip-invalid")
    assert code == 0 and "skipped" in error and "annotation 2" in error, error


def test_convert_keeps_the_weights(command, trained, tmp_path):
    code, out, error = command("convert", trained, tmp_path / "ours")
    assert code == 0 and "3 classes" in out, error
    before, after = _weights(trained), _weights(tmp_path / "ours")
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    # torchvision's models have no group normalisation.
    code, _, error = command("convert", trained, tmp_path / "theirs.safetensors")
    assert (
        code == 2
        and len(error.strip().splitlines()) == 1
        and not (tmp_path / "theirs.safetensors").exists()
    )


def _weights(folder):
    from accelerated import interop

    return interop.load(folder).state_dict()


def test_doctor(command):
    code, out, _ = command("doctor")
    # A CUDA build's torch.__version__ has a suffix that the version of its package lacks.
    assert code == 0 and metadata.version("torch") in out and "cpu" in out


DATA = ("--data", "missing.json", "--images", "nowhere", "--output", "out")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("train", *DATA, "--preset", "huge"), "unknown preset 'huge'"),
        (("train", *DATA, "--set", "rpn.nms_iou=big"), "rpn.nms_iou"),
        (("train", *DATA, "--set", "rpn.nms=0.5"), "no such field"),
        (("train", *DATA), "missing.json"),
        (("train", *DATA, "--device", "quantum"), "expected auto, cpu, cuda"),
        (("train", *DATA, "--device", "cuda:99"), "GPUs"),
        (("train", *DATA, "--backend", "magic"), "expected auto, torch or triton"),
        (("evaluate", "missing", "--data", "d.json", "--images", "i"), "missing"),
        (("predict", "missing", "picture.png"), "missing"),
        (("verify", "missing", "picture.png"), "missing"),
        (("verify", "missing", "picture.png", "--data", "missing.json"), "--train"),
        (("convert", "missing", "target"), "missing"),
        (("export", "missing", "target.onnx"), "missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, error = command(*arguments)
    assert code == 2 and said in error and out == ""
    assert len(error.strip().splitlines()) == 1 and error.startswith("maskrcnn: ")
    assert list(tmp_path.iterdir()) == []


def test_wrong_checkpoints_and_pictures(command, shapes, trained, tmp_path):
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    one_class = json.loads(shapes[0].read_text())
    one_class["categories"] = [one_class["categories"][0] | {"name": "circle"}]
    one_class["annotations"] = [a for a in one_class["annotations"] if a["category_id"] == 1]
    (tmp_path / "one.json").write_text(json.dumps(one_class))
    picture, other = shapes[1] / "000001.png", tmp_path / "other.png"
    other.write_bytes(picture.read_bytes())
    for arguments in (
        ("verify", text, picture),
        ("verify", tmp_path / "other.pth", picture),
        ("verify", trained, text),
        ("verify", trained, picture, "--dtype", "float16"),
        ("verify", trained, picture, "--train", "--dtype", "float16"),
        ("verify", trained, text, "--train"),
        ("verify", trained, picture, "--train", "--data", tmp_path / "one.json"),
        ("verify", trained, other, "--train", "--data", shapes[0]),
        ("predict", trained, tmp_path / "nothing_*.png"),
        ("evaluate", trained, "--data", tmp_path / "one.json", "--images", shapes[1]),
    ):
        code, _, error = command(*arguments, "--device", "cpu")
        assert code == 2 and len(error.strip().splitlines()) == 1 and "Traceback" not in error, (
            arguments,
            error,
        )


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("MASKRCNN_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["maskrcnn", "train", *DATA, "--preset", "huge"])
    with pytest.raises(ValueError, match="unknown preset"):
        cli.main()
