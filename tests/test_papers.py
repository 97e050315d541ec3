"""The map from the papers to the code: what it names exists, and it leaves no step out."""

import importlib
import json
import operator
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = json.loads((ROOT / "docs" / "papers.json").read_text())
STEPS = MAP["steps"]
WRITER = runpy.run_path(str(ROOT / "docs" / "papers.py"))
# Files of reference/ that no paper describes, with the reason.
ELSEWHERE = {
    "__init__": "the package's documentation",
    "augmentation": "switches of the accelerated training loop; the papers only mirror",
    "activations": "ReLU, sigmoid and softmax, which the layers and losses use",
    "checkpoint": "reads files of weights",
    "grad_check": "checks backward passes",
    "presets": "named sets of the switches of config",
    "shapes": "the synthetic data set",
    "structures": "types of what goes in and comes out",
    "typed": "reads dataclasses from JSON",
}


def name(step):
    return f"{step['paper']} {step['section']}: {step['what']}"


def file_of(reference):
    return reference.split(".")[0]


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_the_code_of_a_step_exists(step):
    assert step["reference"] and step["tests"]
    for reference in step["reference"]:
        file, _, inside = reference.partition(".")
        module = importlib.import_module(f"reference.{file}")
        assert not inside or operator.attrgetter(inside)(module)
    for path in [*step["accelerated"], *step["tests"]]:
        assert (ROOT / path).is_file(), path
    assert all(path.startswith("accelerated/") for path in step["accelerated"])
    assert all(re.fullmatch(r"tests/test_\w+\.py", path) for path in step["tests"])


@pytest.mark.parametrize("notebook", sorted({n for step in STEPS for n in step["notebooks"]}))
def test_a_notebook_exists(notebook):
    assert (ROOT / WRITER["notebook"](notebook)).is_file()


def test_every_notebook_is_in_the_map():
    """Those about data and failures belong to no section of a paper."""
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    named = {notebook for step in STEPS for notebook in step["notebooks"]}
    assert notebooks - named <= {"14_own_data", "15_failure_zoo"}


def test_sections_of_the_specification_exist():
    sections = re.findall(r"^## §(\d+)", (ROOT / "docs" / "SPEC.md").read_text(), re.MULTILINE)
    named = {str(number) for step in STEPS for number in step["specification"]}
    # §16 is what no paper says.
    assert named == set(sections) - {"16"}


def test_papers_and_steps_belong_together():
    """The steps of a paper stand together, because only the first of them names it."""
    papers = [step["paper"] for step in STEPS]
    assert list(dict.fromkeys(papers)) == list(MAP["papers"])
    assert papers == sorted(papers, key=list(MAP["papers"]).index)


def test_every_file_of_the_reference_is_in_the_map():
    files = {path.stem for path in (ROOT / "reference").glob("*.py")}
    mapped = {file_of(reference) for step in STEPS for reference in step["reference"]}
    assert files - mapped - ELSEWHERE.keys() == set()
    assert not mapped & ELSEWHERE.keys()


def test_the_pages_show_the_map():
    text = (ROOT / "README.md").read_text()
    assert WRITER["readme"](text, MAP) == text, "run `make map`"
    assert WRITER["page"](MAP) == (ROOT / "docs" / "papers.md").read_text(), "run `make map`"
