"""Golden cases of the operators: a subset in tests/golden, and the complete files if present."""

import pytest

# The complete files of torchvision and detectron2.
COMPLETE = {"tv": "tv_ops", "d2": "d2_ops_f64"}
EXTENT = pytest.mark.parametrize("extent", ["subset", "complete"])


def cases(request, extent, peer, start, subset="box_operators"):
    """Return {case: {"in.boxes": array, ..., "out.keep": array}} of the cases of `peer`.

    Only cases whose name starts with `start` are returned; there is always at least one.
    """
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
