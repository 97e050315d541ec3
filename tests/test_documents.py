"""Documents: citations, links and commands are real, tables well formed, SPEC.md states presets."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from accelerated.command_line import cli
from reference.config import Config, flat, preset, to_dict
from reference.presets import PRESETS

ROOT = Path(__file__).parents[1]
CODE = ("reference", "accelerated", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SPEC = ROOT / "docs" / "SPEC.md"
CITATION = re.compile(r"SPEC\s+(§\d+(?:(?:,|\s+and|\s+to)\s+§\d+)*)")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
FAMILIES = ("torchvision", "detectron2", "paper", "tiny")
FIELD_COLUMNS = ["field", "what it decides", *FAMILIES]


def name(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """Text of a Markdown file without its fenced and indented code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def headings(path):
    return re.findall(r"^#+ (.+?)$", prose(path), flags=re.MULTILINE)


def anchors(path):
    """Fragments of the headings of a Markdown file, as code hosts make them."""
    seen = {}
    for heading in headings(path):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        yield f"{slug}-{seen[slug]}" if seen[slug] else slug


def sections():
    """Numbers of the sections of SPEC.md, in order."""
    matches = (re.match(r"§(\d+) ", heading) for heading in headings(SPEC))
    return [int(match[1]) for match in matches if match]


def tables(path):
    """Tables of a Markdown file: lists of rows, each a list of cells."""
    table = []
    for line in [*prose(path).splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]])
        elif table:
            yield table
            table = []


def fields(values, path=""):
    """(path, value) of every field of the configuration, from its dictionary."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from fields(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.loads(json.dumps(value))


def field_rows():
    """(field, {family: cell}) of SPEC.md's tables of fields; a row may list several fields."""
    for header, _, *rows in tables(SPEC):
        if header == FIELD_COLUMNS:
            for listed, _, *cells in rows:
                for field in re.findall(r"`([^`]+)`", listed):
                    yield field, dict(zip(FAMILIES, cells, strict=True))


def stated(cell, preset_name):
    """Value that a cell states for a preset.

    A cell is `VALUE`, or `VALUE` (VARIANT, VARIANT: `VALUE`; VARIANT: `VALUE`).
    """
    assert re.fullmatch(r"`[^`]+`( \([\w, ]+: `[^`]+`(; [\w, ]+: `[^`]+`)*\))?", cell), cell
    text = re.match(r"`([^`]+)`", cell)[1]
    for variants, exception in re.findall(r"([\w, ]+): `([^`]+)`", cell):
        words = variants.lower().replace("vgg", "vgg16").strip().split(", ")
        if set(words) & set(preset_name.split("_")):
            text = exception
    quotient = re.compile(r"(\d+)/(\d+)")
    return json.loads(quotient.sub(lambda match: repr(int(match[1]) / int(match[2])), text))


def test_sections_keep_their_numbers():
    assert sections() == list(range(1, 19))


def test_every_citation_of_the_specification_resolves():
    cited = [(name(SPEC), number) for number in re.findall(r"§(\d+)", SPEC.read_text())]
    code = (path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    for path in [*DOCUMENTS, *code]:
        for citation in CITATION.findall(path.read_text()):
            cited += [(name(path), number) for number in re.findall(r"\d+", citation)]
    assert {path.split("/")[0] for path, _ in cited} >= {"docs", *CODE}
    assert {(path, number) for path, number in cited if int(number) not in sections()} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path):
    broken = []
    for target in (link or attribute for link, attribute in LINK.findall(prose(path))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        destination = (path.parent / file).resolve() if file else path
        if not destination.exists() or (fragment and fragment not in anchors(destination)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_tables_are_well_formed(path):
    for table in tables(path):
        assert len(table) >= 3, table
        assert all(re.fullmatch(r":?-+:?", cell) for cell in table[1]), "no delimiter row"
        assert [row for row in table if len(row) != len(table[0])] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_fences_are_closed(path):
    assert len(re.findall(r"^```", path.read_text(), flags=re.MULTILINE)) % 2 == 0


def commands(path):
    """Words of each command `maskrcnn` that is a line of a document's code."""
    lines = re.sub(r"\\\n", " ", path.read_text())
    for line in re.findall(r"^(?: {4})?maskrcnn ([a-z].*)$", lines, flags=re.MULTILINE):
        yield shlex.split(line, comments=True)


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if any(commands(p))], ids=name)
def test_commands_options_and_fields_exist(path):
    known, fields = typer.main.get_command(cli.app).commands, flat(Config())
    for command, *words in commands(path):
        parameters = known[command].params
        options = {o for p in parameters for o in (*p.opts, *p.secondary_opts)}
        written = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert written <= options | {"--help"}, command
        sets = {word.partition("=")[0] for option, word in pairwise(words) if option == "--set"}
        assert sets <= fields.keys() | {"help"}, command


def test_every_field_has_one_row_in_the_specification():
    named = [field for field, _ in field_rows()]
    assert sorted(named) == sorted(field for field, _ in fields(to_dict(Config())))


@pytest.mark.parametrize("preset_name", PRESETS)
def test_the_specification_states_every_preset(preset_name):
    # `small` shares the column of `tiny`.
    family = preset_name.split("_")[0].replace("small", "tiny")
    written = {field: stated(cells[family], preset_name) for field, cells in field_rows()}
    assert written == dict(fields(to_dict(preset(preset_name))))
