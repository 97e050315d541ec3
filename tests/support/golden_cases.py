"""Golden cases of the operators: a subset lives in tests/golden, the complete files may be at hand."""

import pytest

COMPLETE = {"tv": "tv_ops", "d2": "d2_ops_f64"}  # torchvision, detectron2
EXTENT = pytest.mark.parametrize("extent", ["subset", "complete"])


def cases(request, extent, peer, start, subset="box_operators"):
    """{case: {"in.boxes": array, .., "out.keep": array}} of all cases of `peer` whose name starts with `start`; never none."""
    if extent == "subset":
        archive, prefix = request.getfixturevalue("golden")(subset), f"{peer}/"
    else:
        archive, prefix = request.getfixturevalue("shared_golden")(COMPLETE[peer]), ""
    found = {}
    for key in archive.files:
        if key.startswith(prefix + start):
            name, _, field = key.removeprefix(prefix).partition("/in.")
            field = f"in.{field}"
            if field == "in.":
                name, _, field = key.removeprefix(prefix).partition("/out.")
                field = f"out.{field}"
            found.setdefault(name, {})[field] = archive[key]
    assert found, f"no golden case {peer}/{start}"
    return found
