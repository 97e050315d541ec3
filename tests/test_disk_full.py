"""A disk that takes no more bytes: the file is named, nothing is half written, the run goes on.

The limit of a file's size makes the system refuse bytes just as a full disk does.
"""

import contextlib
import errno
import os
import resource

import numpy as np
import pytest
from matplotlib.figure import Figure
from support import narrow, small
from test_train import assert_same_run, run

from accelerated import interop
from accelerated.data.text_files import write_json, written_whole
from accelerated.drawing import curves, detections
from accelerated.engine import checkpoint, log


@contextlib.contextmanager
def room(size):
    """Allow files of at most `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_without_room_leaves_the_one_before(tmp_path):
    run(tmp_path / "whole", 2)
    folder = tmp_path / "run"
    run(folder, 1)
    with pytest.raises(OSError) as caught, room(100_000):
        run(folder, 2, resume=True)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename.endswith("checkpoints/.00000002/model.safetensors")
    assert caught.value.strerror == (
        f"File too large; {folder / 'checkpoints' / '00000001'} is whole;"
        " once that is mended, --resume goes on from there"
    )
    assert os.listdir(folder / "checkpoints") == ["00000001"]
    run(folder, 2, resume=True)
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_run_without_room_for_its_first_checkpoint(size, tmp_path):
    with pytest.raises(OSError, match="there is no checkpoint yet") as caught, room(size):
        run(tmp_path / "run", 1)
    assert caught.value.filename.endswith(("data.json", "model.safetensors"))
    assert list((tmp_path / "run").rglob(".*")) == []
    assert run(tmp_path / "run", 1, resume=True).iteration == 1


def test_an_evaluation_without_room_is_made_up(tmp_path, monkeypatch):
    """Which writes more than the lines of the log."""
    options = {"evaluation": small.shapes(2), "evaluate_every": 1}
    with monkeypatch.context() as patch:
        write = checkpoint.point

        def last_room(*arguments):
            write(*arguments)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

        patch.setattr(checkpoint, "point", last_room)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            with pytest.raises(OSError, match="00000001 is whole; once") as caught:
                run(tmp_path, 2, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "evaluations/00000001/results" in caught.value.filename
    assert list((tmp_path / "evaluations").rglob("*.json")) == []
    assert list((tmp_path / "evaluations").rglob(".*")) == []
    run(tmp_path, 2, resume=True, **options)
    lines = [line for line in log.read(tmp_path / "log.jsonl") if "evaluation" in line]
    assert [line["iteration"] for line in lines] == [1, 2]


def test_a_line_of_the_log_is_written_whole_or_not(tmp_path):
    path = tmp_path / "log.jsonl"
    with log.Log(path, 0, 10, bar=False) as lines:
        lines.write(1, loss=1.0, learning_rate=0.1, images_per_second=1.0, seconds=1.0)
        before = path.read_bytes()
        with pytest.raises(OSError) as caught, room(len(before) + 10):
            lines.write(2)
        assert caught.value.filename == str(path) and path.read_bytes() == before
        lines.write(3)
    assert [line["iteration"] for line in log.read(path)] == [1, 3]


def test_files_and_pictures_are_written_whole_or_not(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    model = narrow.model(narrow.config("torchvision_r50_fpn"))
    writers = {
        "values.json": lambda path: write_json(path, list(range(9999))),
        "loss.png": lambda path: curves.save(Figure(), path),
        "drawing.png": lambda path: detections.save(image, path),
        "model.safetensors": lambda path: interop.save(model, path),
        "model.pth": lambda path: interop.save(model, path),
    }
    for name, write in writers.items():
        with pytest.raises(OSError) as caught, room(500):
            write(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
        assert os.listdir(tmp_path) == []
    write_json(tmp_path / "kept", [1])
    with pytest.raises(OSError), room(500), written_whole(tmp_path / "kept") as file:
        file.write("x" * 999)
    assert (tmp_path / "kept").read_text() == "[1]"


def test_the_command_says_it_in_a_line(command, tmp_path):
    data, images = small.shapes(2).write_coco(tmp_path)
    where = ("--data", data, "--images", images, "--output", tmp_path / "run")
    size = ("--batch-size", 2, "--device", "cpu", *small.CHANGES, "--iterations", 1)
    with room(100_000):
        code, _, error = command("train", *where, *size)
    assert code == 2
    assert error.splitlines()[-1] == (
        f"maskrcnn: {tmp_path / 'run' / 'checkpoints' / '.00000001' / 'model.safetensors'}:"
        " File too large; there is no checkpoint yet; once that is mended, --resume begins the run"
        " again"
    )
