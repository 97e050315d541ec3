"""The command `train`: what it says first, how it resumes, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from support import small

from accelerated.command_line import fields
from accelerated.data import synthetic
from accelerated.engine import checkpoint, log
from reference.config import override, preset, to_dict


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Six small images: the options that name them."""
    data, images = synthetic.ShapesDataset(6, size=64).write_coco(tmp_path_factory.mktemp("data"))
    return ("--data", data, "--images", images)


@pytest.fixture
def train(command, shapes, tmp_path):
    """train(options): in RUN, of two images per step; (exit code, standard output, error)."""
    fixed = ("train", *shapes, "--output", tmp_path / "run", "--batch-size", 2, *small.CHANGES)
    return lambda *options: command(*fixed, "--device", "cpu", *options)


@pytest.fixture
def resume(command, tmp_path):
    """resume(options): the run, with nothing said but these."""
    return lambda *options: command("train", "--output", tmp_path / "run", "--resume", *options)


def said(out):
    """{label: text} of the first lines."""
    return {label: text for label, _, text in (line.partition("  ") for line in out.splitlines())}


def test_the_first_lines(train, shapes, tmp_path):
    code, out, error = train("--iterations", 6, "--val", shapes[1], "--seed", 3)
    assert code == 0, error
    lines = {label: text.strip() for label, text in said(out).items()}
    assert list(lines)[:10] == [
        "Data",
        "Validation",
        "Model",
        "Input",
        "Length",
        "Learning rate",
        "Schedule",
        "Warm-up",
        "Seed",
        "Runs on",
    ]
    assert lines["Validation"] == lines["Data"]
    assert lines["Data"].startswith(f"{shapes[1]}: 6 images, ")
    assert lines["Data"].endswith("3 classes (disc, rectangle, triangle)")
    assert "tiny" in lines["Model"] and "ResNet-18 of width 8" in lines["Model"]
    assert lines["Input"].startswith("long side 64 pixels; objects have a median side of ")
    assert lines["Length"] == "6 steps of 2 images, 2.0 epochs of 6 images"
    assert lines["Learning rate"] == ("AdamW, 0.001: 0.002 for 4 images, x 2/4 for this batch size")
    assert lines["Schedule"] == "times 0.2 at steps 4 and 6"
    assert lines["Warm-up"] == "0 steps instead of 50, at most a tenth of the run"
    assert lines["Seed"] == "3" and lines["Runs on"].startswith("cpu with ")
    # What is stored is what was said.
    assert checkpoint.read(tmp_path / "run").config.optimizer.warmup_iterations == 0
    assert re.fullmatch(r"Best mask AP 0\.\d+ at step 6: .*best\.", out.splitlines()[-2])
    assert out.splitlines()[-1].startswith("Trained for 6 steps. Weights: ")


def test_a_warmup_that_was_set_stays_and_augmentation_is_said(train, tmp_path):
    changes = ("--set", "optimizer.warmup_iterations=7", "--set", "augment.scale=[0.5,2]")
    code, out, error = train("--iterations", 2, *changes)
    assert code == 0 and "Warm-up        7 steps\n" in out, error
    assert "Augmentation   scale=[0.5, 2.0]\n" in out
    assert checkpoint.read(tmp_path / "run").config.optimizer.warmup_iterations == 7


def test_objects_that_are_too_small_are_warned_of(train):
    code, out, error = train("--iterations", 1, "--set", "transform.max_size=32")
    assert code == 0 and "long side 32 pixels" in out
    assert "maskrcnn: warning: half of the objects" in error and "transform.min_size=[" in error


def test_epochs(train, tmp_path):
    """An epoch of six images in batches of two is three steps."""
    code, out, error = train("--epochs", 0.5)
    assert code == 0 and "2 steps of 2 images, 0.7 epochs" in out, error
    wrongs = [("--epochs", epochs) for epochs in (0, "inf", "nan")]
    for wrong in (*wrongs, ("--epochs", 1, "--iterations", 4)):
        code, _, error = train("--resume", *wrong)
        assert code == 2 and "--epochs: expected" in error and len(error.splitlines()) == 1
    code, out, error = train("--epochs", 1, "--resume")
    assert code == 0 and checkpoint.read(tmp_path / "run").iteration == 3, error


def test_resume_takes_the_options_from_the_run(train, resume, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes[1].parent)
    where = ("--data", shapes[1].name, "--images", shapes[3].name, "--val", shapes[1].name)
    options = (*where, "--seed", 5, "--fixed-shapes", "--evaluate-every", 1)
    code, _, error = train("--iterations", 1, *options)
    assert code == 0, error
    before = checkpoint.read(tmp_path / "run")
    # From anywhere.
    monkeypatch.chdir("/")
    code, out, error = resume("--iterations", 2)
    assert code == 0 and "resumed from step 1" in out, error
    after = checkpoint.read(tmp_path / "run")
    assert after.iteration == 2 and after.config == before.config
    changed = {"iterations": 2, "schedule": 2}
    assert after.settings == before.settings | changed and after.settings["fixed_shapes"] is True
    lines = [line for line in log.read(tmp_path / "run" / "log.jsonl") if "evaluation" in line]
    assert [line["iteration"] for line in lines] == [1, 2]
    # Finished: nothing is left to do, twice as well.
    assert resume()[0] == 0 and checkpoint.read(tmp_path / "run").iteration == 2


def test_one_command_for_a_restart_loop(train, resume, tmp_path):
    code, _, error = resume()
    assert code == 2 and "holds no run yet: name the data with --data" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "run").exists()
    for _ in range(2):
        code, _, error = train("--iterations", 2, "--resume")
        assert code == 0 and checkpoint.read(tmp_path / "run").iteration == 2, error
    code, _, error = train("--iterations", 2)
    assert code == 2 and "already holds a run" in error


def test_a_run_that_was_killed_before_its_first_checkpoint(train, resume, tmp_path):
    assert train("--iterations", 1)[0] == 0
    config = checkpoint.read(tmp_path / "run").config
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "last").unlink()
    code, out, error = resume()
    assert code == 0 and "random weights" in out, error
    assert checkpoint.read(tmp_path / "run").config == config


def test_what_contradicts_the_run_is_refused(train, resume, tmp_path):
    assert train("--iterations", 1)[0] == 0
    for options, problem in (
        (("--seed", 1), "seed = 0, not 1"),
        (("--batch-size", 3), "batch_size = 2, not 3"),
        (("--set", "optimizer.gamma=0.5"), "optimizer.gamma = 0.2, not 0.5"),
        (("--set", "optimizer.warmup_iterations=9"), "warmup_iterations = 0, not 9"),
        (("--preset", "small"), "anchors.sizes = ((12.0,)"),
    ):
        code, out, error = resume(*options)
        assert code == 2 and problem in error and out == "", (options, error)
    # Options of an older version are not known: data has to be named.
    (tmp_path / "run" / "run.json").unlink()
    code, _, error = resume()
    assert code == 2 and "does not say what it was trained on: name the data" in error
    (tmp_path / "run" / "run.json").write_text("[1")
    code, _, error = resume()
    assert code == 2 and "run.json: damaged" in error and len(error.splitlines()) == 1


def test_a_moved_learning_rate_is_told(train, resume, tmp_path):
    assert train("--iterations", 2)[0] == 0
    shutil.copytree(tmp_path / "run", tmp_path / "other", symlinks=True)
    code, _, error = resume("--iterations", 4)
    # The schedule of two steps has taken both of its steps down.
    told = "learning rate at step 2: 4e-05 under the schedule of 2 steps, 0.001 under that of 4"
    assert code == 0 and f"maskrcnn: warning: {told}; training goes on with the latter" in error
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "other").rename(tmp_path / "run")
    code, out, error = resume("--iterations", 4, "--keep-schedule")
    assert code == 0 and f"{told}; training goes on with the former" in error
    assert "times 0.2 at steps 2 and 2" in out
    rates = [line["learning_rate"] for line in log.read(tmp_path / "run" / "log.jsonl")]
    assert rates[-1] == pytest.approx(4e-5)
    # Said once: no warning for the same length.
    assert "learning rate" not in resume()[2]


def test_exchanged_categories_are_refused_and_reordered_ones_are_not(
    train, command, shapes, tmp_path
):
    assert train("--iterations", 1, "--val", shapes[1])[0] == 0
    content = json.loads(shapes[1].read_text())
    categories = content["categories"]
    names = [category["name"] for category in categories]
    cases = {
        "reordered": categories[::-1],
        "swapped": [
            c | {"name": n} for c, n in zip(categories, [*names[1::-1], *names[2:]], strict=True)
        ],
        "renumbered": [c | {"id": c["id"] + 10} for c in categories],
    }
    for name, changed in cases.items():
        moved = 10 if name == "renumbered" else 0
        annotations = [
            a | {"category_id": a["category_id"] + moved} for a in content["annotations"]
        ]
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content | {"categories": changed, "annotations": annotations}))
        run = ("train", "--output", tmp_path / "run", "--resume", "--iterations", 2)
        code, out, error = command(*run, "--data", file)
        if name == "reordered":
            assert code == 0, error
        else:
            first = "'rectangle' with id 1" if name == "swapped" else "'disc' with id 11"
            expected = f"label 1 was 'disc' with id 1, in this data it is {first}"
            assert code == 2 and expected in error and out == "", error
            assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
    ],
)
def test_processes_that_torchrun_did_not_start_are_refused(
    command, environment, monkeypatch, tmp_path
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for arguments in (
        ("train", "--data", "d.json", "--output", tmp_path / "run"),
        ("evaluate", "missing", "--data", "d.json"),
        ("predict", "missing", "picture.png"),
    ):
        code, out, error = command(*arguments)
        assert code == 2 and "start them with torchrun" in error and out == ""
        assert len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "--data", "d.json"),
        ("import", "--data", "d.json", "--output", "out"),
        ("convert", "missing", "out.pth"),
        ("export", "missing", "out.onnx"),
        ("verify", "missing", "picture.png"),
        ("benchmark",),
        ("evaluate", "detections.json", "--data", "d.json"),
    ],
)
def test_a_command_that_processes_cannot_share_is_refused(command, arguments, monkeypatch):
    names = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "::1", "MASTER_PORT": 1}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    code, out, error = command(*arguments)
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert "started as one of 2 processes" in error and "without torchrun" in error


def test_one_process_of_a_cluster_is_not_refused(command, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "missing" in command("predict", "missing", "picture.png")[2]


def test_set_help_lists_every_field_with_its_value_and_meaning(command):
    code, out, _ = command("train", "--set", "help", "--preset", "paper_vgg16")
    assert code == 0 and "in the preset paper_vgg16." in out
    config = preset("paper_vgg16")

    def flat(values, path=""):
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{path}{name}.")
            else:
                yield f"{path}{name}"

    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and "=" in line]
    listed = [line for line in listed if line.partition("=")[0] in set(flat(to_dict(config)))]
    assert sorted(line.partition("=")[0] for line in listed) == sorted(flat(to_dict(config)))
    # As --set takes them.
    for line in listed:
        assert override(config, line) == config
    text = "\n".join(fields.listing(config))
    assert "  backbone.kind=vgg (or resnet)\n" in text
    assert "of the convolutions at every level" in text
    code, out, _ = command("train", "--set", "rpn.nms_iou=0.5", "--set", "help")
    assert code == 0 and "rpn.nms_iou=0.5\n" in out and "preset small" in out


def test_shell_completion():
    environment = {"_MASKRCNN_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    environment |= os.environ | {"COMP_WORDS": "maskrcnn train --keep-s"}
    run = [sys.executable, "-m", "accelerated"]
    shown = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert shown.stdout.strip() == "--keep-schedule", shown.stderr


def test_the_module_has_the_programs_name_and_exit_codes():
    run = [sys.executable, "-m", "accelerated"]
    shown = subprocess.run([*run, "train", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "Usage: maskrcnn train" in shown.stdout
    shown = subprocess.run([*run, "train", "--output", "x"], capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stderr == (
        "maskrcnn: name the data to train on with --data\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--val-images", "x"), "--val-images does nothing without --val"),
        (("--evaluate-every", 1), "--evaluate-every does nothing without --val or --split"),
        (("--names", "x"), "--names does nothing without --weights"),
        (("--set", "num_classes=7"), "num_classes is 3, as in the data, not 7"),
    ],
)
def test_options_that_would_do_nothing_are_refused(train, options, said):
    code, _, error = train("--iterations", 1, *options)
    assert code == 2 and error == f"maskrcnn: {said}\n"


def test_validation_on_training_images_is_said(train, shapes, tmp_path):
    content = json.loads(shapes[1].read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(content))
    code, out, error = train("--iterations", 1, "--val", tmp_path / "val.json")
    assert code == 0 and "warning: 2 of the 2 validation images are trained on" in error
    assert out.splitlines()[-1].startswith("Trained for 1 step. ")


def test_a_resumed_run_tells_other_data_and_another_machine(
    train, resume, shapes, tmp_path, monkeypatch
):
    # The folder of a run may be relative.
    monkeypatch.chdir(tmp_path)
    assert train("--iterations", 2, "--checkpoint-every", 1, "--val", shapes[1])[0] == 0
    content = json.loads(shapes[1].read_text())
    removed = content["annotations"].pop()
    (tmp_path / "less.json").write_text(json.dumps(content))
    [image] = [i for i in content["images"] if i["id"] == removed["image_id"]]
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    options = ("--output", "run", "--data", tmp_path / "less.json", "--val", shapes[1])
    code, out, error = resume(*options, "--iterations", 3, "--resume-from", 1)
    assert code == 0 and "resumed from step 1" in out and "configuration of run:" in out, error
    lines = [line for line in error.splitlines() if line.startswith("maskrcnn: warning: ")]
    count = len(content["annotations"])
    assert (
        "maskrcnn: warning: the training data is not what it was:"
        f" 6 images with {count + 1} objects before, 6 images with {count} objects now;"
        f" the first image that differs is {image['file_name']!r} (id {image['id']})"
    ) in lines
    assert any("not bit for bit: threads: " in line and "before, 99 now" in line for line in lines)
    assert not any("validation data" in line for line in lines)
    # Said once.
    code, _, error = resume("--iterations", 4, "--val", tmp_path / "less.json")
    assert code == 0 and "the validation data is not what it was" in error
    assert "training data" not in error


def test_the_step_to_resume_from_needs_a_run(train, resume, tmp_path):
    assert train("--iterations", 1)[0] == 0
    for options, said in (
        (("--resume-from", 7), "00000007: no such checkpoint; the newest whole one is that of"),
        (("--resume-from", -1), "--resume-from"),
    ):
        code, _, error = resume(*options)
        assert code == 2 and said in error
    code, _, error = train("--resume-from", 1)
    assert code == 2 and error == "maskrcnn: --resume-from does nothing without --resume\n"
