"""The commands in docs/data.md, as written there, on small data."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from support import annotated

from accelerated.command_line import cli

DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line)[1:] for block in BLOCKS for line in block.splitlines()]


def test_the_commands_of_the_page_work(command, tmp_path, monkeypatch):
    annotated.labelme(tmp_path)
    annotated.yolo(tmp_path / "yolo")
    monkeypatch.chdir(tmp_path)
    ran = [words for words in COMMANDS if words[0] in ("inspect", "import")]
    assert len(ran) >= 8
    for words in ran:
        code, out, error = command(*words)
        assert code == 0, (words, out, error)
    names = ("sample.png", "photos_train.json", "photos_val.json", "val.json")
    assert all((tmp_path / name).is_file() for name in names)
    assert (tmp_path / "labels/data.yaml").exists() and (tmp_path / "corrected/a.json").exists()


def test_inspect_names_the_file_of_labels(command, tmp_path):
    annotated.yolo(tmp_path)
    (tmp_path / "labels/train/b c.txt").write_text("0 0.1 0.1\n")
    code, out, _ = command("inspect", "--data", tmp_path)
    assert code == 1 and re.search(
        r"row_invalid +labels/train/b c.txt +row 1 is skipped: it has 2", out
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_options_of_the_page_exist(words):
    typed = typer.main.get_command(cli.app).commands[words[0]]
    known = {option for parameter in typed.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_options_that_the_page_lists_exist():
    typed = typer.main.get_command(cli.app).commands["train"]
    known = {option for parameter in typed.params for option in parameter.opts}
    listed = re.findall(r"^\| `(--[\w-]+)", DOCUMENT.read_text(), re.MULTILINE)
    assert len(listed) == 5 and set(listed) <= known
