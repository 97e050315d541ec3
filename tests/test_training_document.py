"""The commands and the program in docs/training.md, as written there, on small data."""

import re
import shlex
from pathlib import Path

import typer
from support import annotated, small

from accelerated.command_line import cli
from accelerated.engine import checkpoint, log

DOCUMENT = (Path(__file__).parents[1] / "docs" / "training.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_work(command, tmp_path, monkeypatch):
    """All features at once, and a resumed run that takes them from RUN/run.json."""
    annotated.yolo(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    shell = "".join(blocks("sh")).replace("\\\n", " ")
    lines = [shlex.split(line) for line in shell.splitlines()]
    first, second = [words[1:] for words in lines if words[:2] == ["maskrcnn", "train"]]
    code, out, error = command(*first, "--device", "cpu", "--preset", "tiny", *small.CHANGES)
    assert code == 0, error
    for row in ("Frozen ", "Rates ", "Average ", "In parts "):
        assert f"\n{row}" in out
    code, out, error = command(*second)
    assert code == 0 and "resumed from step 4" in out, error
    settings = checkpoint.read("runs/tuned").settings
    assert settings["ema"] == 0.999 and settings["accumulate"] == 2
    assert settings["freeze"] == ["backbone.conv1.*"] and settings["rates"] == ["backbone.*=0.1"]
    evaluations = [x for x in log.read("runs/tuned/log.jsonl") if "evaluation" in x]
    assert [line["iteration"] for line in evaluations] == [2, 4, 6]
    assert all(len(line["validation"]) == 5 for line in evaluations)
    assert list(Path("runs/tuned/tensorboard").iterdir())


def test_the_options_that_the_page_names_exist():
    typed = typer.main.get_command(cli.app).commands["train"]
    known = {option for parameter in typed.params for option in parameter.opts}
    named = set(re.findall(r"^\| `(--[\w-]+)", DOCUMENT, re.MULTILINE))
    assert len(named) == 7 and named <= known


def test_the_program_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [program] = blocks("python")
    # Of a narrow model.
    changes = ", ".join(map(repr, small.NARROW))
    exec(program.replace('"num_classes=3"', f'"num_classes=3", {changes}'), {})
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "4 None"
    assert [line.split()[0] for line in out if re.match(r"\d \d", line)] == ["2", "4", "4"]
