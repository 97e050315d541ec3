"""Damaged and hostile files of every format: problems, never a traceback or a file elsewhere."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import annotated

from accelerated.data import images, lint, sources

NAN, INFINITE = float("nan"), float("inf")
VALUES = [None, True, -1, 0, 2.5, 1e308, 10**400, NAN, INFINITE, "", "x", "1", "\0", "a\ud800"]
VALUES += ["../../../../etc/hostname", "/etc/hostname", [], {}, [[]], [1], [None], {"a": {}}]
WORDS = [
    "",
    "-1",
    "nan",
    "1e999",
    "\0",
    "x",
    "../..",
    "[",
    "]",
    "{",
    "}",
    ":",
    "- ",
    "&a",
    "*a",
    '"',
]
WORDS += ["/etc/hostname", "99999999999999999999", "!!python/object:os.system", ",", "\n"]
JSONS = ["labelme", "via_export", "via_project", "via_3", "label_studio", "cityscapes"]


def places(node, path=()):
    """Yield the path of every value in parsed JSON."""
    yield path
    entries = enumerate(node) if isinstance(node, list) else ()
    for key, value in node.items() if isinstance(node, dict) else entries:
        yield from places(value, (*path, key))


def replaced(node, path, value):
    """Return a copy of parsed JSON with another value, or without that one, at a path."""
    if not path:
        return value
    copied = node.copy()
    key, *rest = path
    if not rest and value is ...:
        del copied[key]
    else:
        copied[key] = replaced(node[key], rest, value)
    return copied


def opened_below(folder, data):
    """Open a data set as the commands do; return its problems, or the one error that it may be."""
    try:
        report = lint.check(data)
    except ValueError as error:
        # Ours names the data; others would be accidents.
        assert str(error).startswith(str(folder)), error
        return None
    source = sources.find(data)
    for image in source.content["images"] if source.content else ():
        # Whatever an annotation file says, a name is one of a file that is there.
        path = images.locate(source.image_root, image["file_name"])
        assert path.is_relative_to(os.path.realpath(folder))
    return report


@pytest.mark.parametrize("name", JSONS)
def test_any_value_in_a_json_file(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)
    data = annotated.ALL[name](folder)
    path = next(p for p in sorted(folder.rglob("*.json")) if p.name != "b c.json")
    whole = json.loads(path.read_text())
    everywhere = list(places(whole))

    @given(st.data())
    def check(draw):
        changed = whole
        for _ in range(draw.draw(st.integers(1, 2))):
            where = draw.draw(st.sampled_from(everywhere))
            value = draw.draw(st.sampled_from([*VALUES, ...]))
            try:
                changed = replaced(changed, where, value)
            # The first change took the place of the second away.
            except (KeyError, IndexError, TypeError, AttributeError):
                continue
        path.write_text(json.dumps(None if changed is ... else changed))
        opened_below(folder, data)

    check()
    for text in ("", "[" * 100_000, '{"a":' * 100_000, "[1, 2", "\xff", "9" * 5000):
        path.write_bytes(text.encode("latin-1"))
        opened_below(folder, data)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("yolo", "data.yaml"),
        ("yolo", "labels/train/a.txt"),
        ("via_table", "via.csv"),
        ("cvat", "annotations.xml"),
        ("pascal", "VOC2012/ImageSets/Segmentation/train.txt"),
    ],
)
def test_any_word_in_a_text_file(name, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)
    data, path = annotated.ALL[name](folder), folder / file
    text = path.read_text()

    @given(st.data())
    def check(draw):
        start = draw.draw(st.integers(0, len(text)))
        end = draw.draw(st.integers(start, min(len(text), start + 9)))
        word = draw.draw(st.sampled_from(WORDS))
        path.write_text(text[:start] + word + text[end:])
        opened_below(folder, data)

    check()


@pytest.mark.parametrize("name", annotated.MASKS)
def test_any_byte_in_a_mask(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)
    data = annotated.ALL[name](folder)
    path = max(folder.rglob("*.png"), key=lambda p: "mask" in str(p).lower() or "Object" in str(p))
    raw = path.read_bytes()

    @given(st.data())
    def check(draw):
        where = draw.draw(st.integers(0, len(raw) - 1))
        damaged = bytearray(raw)
        damaged[where] = draw.draw(st.integers(0, 255))
        path.write_bytes(damaged[: draw.draw(st.integers(where, len(raw)))])
        opened_below(folder, data)

    check()


def test_a_mask_that_would_fill_the_memory(tmp_path):
    """A picture of 40,000 x 40,000 pixels in a few bytes is not decompressed."""
    annotated.penn_fudan(tmp_path)
    raw = bytearray((tmp_path / "PedMasks/Fudan0_mask.png").read_bytes())
    raw[16:24] = (40_000).to_bytes(4, "big") * 2
    (tmp_path / "PedMasks/Fudan0_mask.png").write_bytes(raw)
    source = sources.find(tmp_path)
    assert [p.code for p in source.problems][:1] == ["mask_unreadable"]
    assert len(source.content["images"]) == 1


@pytest.mark.parametrize("name", ["labelme", "via_export", "label_studio"])
def test_no_name_leads_outside(name, tmp_path):
    annotated.picture(tmp_path / "secret.png")
    data = annotated.ALL[name](tmp_path / "inside")
    path = next(p for p in sorted((tmp_path / "inside").rglob("*.json")) if p.name != "b c.json")
    outside = ["../secret.png", str(tmp_path / "secret.png"), "..\\\\secret.png"]
    for reference in outside:
        text = path.read_text().replace("/data/upload/1/9af3e1c2-a.png", "a.png")
        path.write_text(text.replace('"a.png"', json.dumps(reference)))
        source = sources.find(data)
        names = [image["file_name"] for image in source.content["images"]]
        assert not [file for file in names if "secret" in file]
        if name != "labelme":
            assert any("secret.png" in problem.message for problem in source.problems)
