"""What goes in, what comes out and what happens between: documented, and the same in both twins."""

import dataclasses
import inspect
import re

import pytest

import accelerated.structures
import reference.structures


def fields(stages):
    return [field.name for field in dataclasses.fields(stages)]


@pytest.mark.parametrize("twin", [reference.structures, accelerated.structures])
def test_every_stage_is_documented_in_order(twin):
    documented = []
    # Python 3.13 removes the indentation of docstrings; getdoc does so on every version.
    for line in inspect.getdoc(twin.Stages).splitlines():
        if match := re.match(r"(\w+)( \.\. (\w+))?  +\S", line):
            first, last = match[1], match[3]
            numbers = range(int(first[1]), int(last[1]) + 1) if last else ()
            documented += [f"{first[0]}{number}" for number in numbers] or [first]
    assert documented == fields(twin.Stages)


def test_the_twins_have_the_same_stages():
    """The padded one tells besides which proposal slots are filled."""
    ours = fields(accelerated.structures.Stages)
    assert [name for name in ours if name != "proposal_valid"] == fields(
        reference.structures.Stages
    )
    for name in ("Target", "Detections"):
        twins = (getattr(twin, name) for twin in (reference.structures, accelerated.structures))
        assert len({tuple(fields(twin)) for twin in twins}) == 1


@pytest.mark.parametrize("twin", [reference.structures, accelerated.structures])
def test_keep(twin):
    record = twin.Stages()
    twin.keep(record, P3="map", images="batch")
    assert record.computed() == {"images": "batch", "P3": "map"}, "in the order of computation"
    twin.keep(None, P3="map")
    with pytest.raises(AttributeError, match="no field P7"):
        twin.keep(record, P7="map")
