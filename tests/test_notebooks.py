"""Notebooks: each runs offline within its budget, prints what is stored, and defines no step."""

import ast
import re
import textwrap

import build
import nbformat
import pytest

from tests.support.mutations import MUTATIONS

SOURCES = build.sources()
# Seconds of processor time. Neighbours on the same machine make a second longer.
BUDGET, BUDGET_OF_ALL, NEIGHBOURS = 60, 8 * 60, 1.5
STORED = {source: source.with_suffix(".ipynb") for source in SOURCES}
NOTEBOOK = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
PACKAGES = ("reference", "accelerated")


def stored(source):
    return nbformat.read(STORED[source], 4)


def cells(source, kind):
    return [cell.source for cell in build.read(source).cells if cell.cell_type == kind]


@NOTEBOOK
def test_it_prints_what_is_stored(source):
    fresh = build.read(source)
    seconds = build.execute(fresh)
    assert build.texts(fresh) == build.texts(stored(source))
    assert seconds < min(NEIGHBOURS * fresh.metadata["cpu_seconds"], BUDGET)


def test_budgets():
    budgets = [build.read(source).metadata["cpu_seconds"] for source in SOURCES]
    assert max(budgets) <= BUDGET and sum(budgets) <= BUDGET_OF_ALL


@NOTEBOOK
def test_source_and_notebook_are_one(source):
    fresh, old = build.read(source), stored(source)
    assert [(c.cell_type, c.source) for c in fresh.cells] == [
        (c.cell_type, c.source) for c in old.cells
    ]
    assert fresh.metadata == old.metadata


@NOTEBOOK
def test_the_stored_notebook_is_whole(source):
    code = [cell for cell in stored(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@NOTEBOOK
def test_it_is_small_and_says_nothing_of_a_machine(source):
    assert STORED[source].stat().st_size < 500_000
    text = re.sub(r'"image/png": "[^"]*"', "", STORED[source].read_text())
    assert "widget-state" not in text and build.WIDGET not in text
    assert not re.search(r"/(home|root|work|tmp|usr)/|[A-Z]:\\\\|0x[0-9a-f]{6,}", text)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b", text)


def test_the_folder_is_small():
    files = [path for path in build.HERE.rglob("*") if "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 8_000_000
    assert sum(path.stat().st_size for path in STORED.values()) < 4_000_000


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@NOTEBOOK
def test_it_defines_no_algorithm(source):
    tree = ast.parse(source.read_text())
    for node in functions(tree):
        assert node.end_lineno - node.lineno < 12, f"{node.name} is long"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
        modules = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        assert "torch.nn" not in {getattr(node, "module", None), *modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            # `_replace` and `_asdict` are the public names of a NamedTuple.
            assert node.attr.startswith("__") or node.attr in ("_replace", "_asdict"), node.attr


@pytest.mark.parametrize("name", ["figures", "stations"])
def test_drawing_imports_neither_package(name):
    tree = ast.parse((build.HERE / f"{name}.py").read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    assert not [name for name in names if name.split(".")[0] in PACKAGES]


@NOTEBOOK
def test_pictures_have_captions(source):
    pictures = 0
    for cell in stored(source).cells:
        outputs = cell.get("outputs", [])
        for i, output in enumerate(outputs):
            if "image/png" in output.get("data", {}):
                caption = outputs[i + 1].data["text/markdown"].strip("*")
                assert 40 <= len(caption) <= 400
                pictures += 1
    assert pictures >= 2


@NOTEBOOK
def test_it_opens_with_a_question_and_ends_with_what_to_remember(source):
    first, *_, last = cells(source, "markdown")
    number = int(source.name[:2])
    assert re.match(rf"# {number}\. \w", first)
    for word in ("**The question.**", "**Time.**", "**Data.**", "**Before.**"):
        assert word in first, word
    assert "**Remember.**" in last and "**Next.**" in last
    assert "exercise.check(" in source.read_text()
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(cells(source, "markdown"))):
        assert (build.HERE / target).exists(), target


def test_the_questions_after_a_notebook_name_its_sections():
    readme = (build.HERE / "README.md").read_text()
    for number, text in re.findall(
        r"^## After notebook (\d+)\n(.*?)(?=^## |\Z)", readme, re.M | re.S
    ):
        [source] = [source for source in SOURCES if int(source.name[:2]) == int(number)]
        questions = re.findall(r"^\| (.+\?) \| \"(.+)\" \|$", text, re.M)
        assert len(questions) == 10
        headings = re.findall(r"^## (.+)$", "\n".join(cells(source, "markdown")), re.M)
        assert not [section for _, section in questions if section not in headings]


@NOTEBOOK
def test_numbers_in_prose_are_computed(source):
    for text in cells(source, "markdown"):
        prose = re.sub(r"\$\$.*?\$\$|\$.*?\$|`[^`]*`|\[[^\]]*\]\([^)]*\)", "", text, flags=re.S)
        prose = re.sub(r"§\s*\d+(\.\d+)*|\[[^\]]*\]", "", prose)
        assert not re.findall(r"\d+\.\d+", prose)


@NOTEBOOK
def test_one_slider_at_most(source):
    assert source.read_text().count("draw.explore(") <= 1


def as_a_call(code):
    """Code whose names the notebook's cells cannot overwrite."""
    return f"def _break():\n{textwrap.indent(code, '    ')}\n_break()\n"


@pytest.mark.parametrize("topic, code", MUTATIONS, ids=lambda value: str(value)[:40])
def test_a_broken_oracle_is_noticed(topic, code):
    [source] = [source for source in SOURCES if topic in source.name]
    with pytest.raises(build.CellExecutionError, match="AssertionError"):
        build.execute(build.read(source), before=as_a_call(code))


def test_sixteen_notebooks():
    assert [int(source.name[:2]) for source in SOURCES] == list(range(16))
