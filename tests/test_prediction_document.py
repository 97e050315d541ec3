"""The commands and the code in docs/prediction.md, as written there."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image
from support.spots import CATEGORIES, Spots, spot, write_video

import accelerated
from accelerated.command_line import cli, loading

DOCUMENT = (Path(__file__).parents[1] / "docs" / "prediction.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line) for block in SHELL for line in block.splitlines()]
COMMANDS = [words[1:] for words in COMMANDS if words[0] == "maskrcnn"]
PYTHON = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
# What a stand-in for a model can do.
PLAIN = {"--output", "--save", "--batch-size", "--every", "--images"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with photos/ and film.mp4, and a stand-in for the model."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for index in range(2):
        Image.fromarray(spot(3 * index, 5)).save(f"photos/{index}.png")
    write_video("film.mp4", [spot(2 * index, 8) for index in range(6)])
    monkeypatch.setattr(loading, "load_model", lambda *_: (Spots(), CATEGORIES))
    monkeypatch.setattr(accelerated, "load", lambda *_: Spots(), raising=False)


def test_the_commands_of_the_page_work(command, here):
    ran = [words for words in COMMANDS if {x for x in words if x.startswith("--")} <= PLAIN]
    assert len(ran) >= 6
    for words in ran:
        code, out, error = command(*words)
        assert code == 0, (words, out, error)
    assert all(Path("predictions", name).exists() for name in ("film.csv", "masks/0.png"))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_options_of_the_page_exist(words):
    typed = typer.main.get_command(cli.app).commands[words[0]]
    known = {option for parameter in typed.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_code_of_the_page_works(here, capsys):
    names = {}
    for block in PYTHON:
        exec(block, names)
    out = capsys.readouterr().out
    assert "class 2 covers 256 pixels, from row 5 and column 3" in out
    assert "film" not in out and "5 0.2 ['class 2'] (48, 64, 3)" in out
