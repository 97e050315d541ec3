"""The ablation: rows that differ where they say so, results that are kept, tables that say what was measured and what was not."""

import csv
import json
from dataclasses import replace

import pytest

pytest.importorskip("pycocotools")

from accelerated import ablate
from accelerated.data.synthetic import ShapesDataset
from reference import config as configuration
from reference import shapes

SCALES = {"reduced": ablate.REDUCED, "full": ablate.FULL}
# As little as trains: what is tested here is not how well.
SMALL = (
    "transform.min_size=[32]",
    "transform.max_size=32",
    "backbone.width=8",
    "fpn.channels=8",
    "box_head.channels=16",
    "box_head.batch_size=8",
    "mask_head.channels=8",
    "mask_head.mlp_channels=8",
    "optimizer.batch_size=1",
    "rpn.pre_nms_top_n_test=8",
    "rpn.post_nms_top_n_test=4",
)


def data(count=2):
    return ShapesDataset(count, seed=1, size=32, style=shapes.HARD), ShapesDataset(1, seed=2, size=32, style=shapes.HARD)


def planned(scale=ablate.REDUCED, seeds=1, iterations=1, rows=None, **options):
    """(comparisons, runs), the latter of the first `rows` rows."""
    compared, todo = ablate.plan(scale, *data(), data="test", changes=SMALL, seeds=seeds, iterations=iterations, **options)
    names = list(dict.fromkeys(run.name for run in todo))[:rows]
    return compared, [run for run in todo if run.name in names]


def run(todo, output, **options):
    said = []
    ablate.ablate(todo, output, *data(), announce=said.append, **options)
    return said


def differences(a, b, path=""):
    for name in a:
        if isinstance(a[name], dict):
            yield from differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b[name]:
            yield path + name


def fields(before, after):
    """The fields in which two rows differ."""
    a, b = ({change.split("=")[0]: change for change in row.changes} for row in (before, after))
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_rows_differ_in_the_fields_they_name(scale):
    base = ablate.base(scale)
    compared = ablate.comparisons(scale)
    assert [len(comparison.rows) for comparison in compared] == [4, 2, 4, 2, 2, 2]
    for comparison in compared:
        made = []
        for row in comparison.rows:
            config = base
            for change in row.changes:
                config = configuration.override(config, change)
            configuration.check(config)
            made.append(configuration.to_dict(config))
        for (row, values), (other, others) in zip(zip(comparison.rows, made, strict=True), list(zip(comparison.rows, made, strict=True))[1:]):
            assert set(differences(values, others)) <= fields(row, other) and values != others
    narrow = {comparison.title[:3]: fields(*comparison.rows[-2:]) for comparison in compared[1:]}
    operators = {f"{head}.pooler.{name}" for head in ("box_head", "mask_head") for name in ("operator", "aggregate")}
    assert narrow["(b)"] == {"mask_head.loss"} and narrow["(e)"] == {"mask_head.kind"} and narrow["(f)"] == {"mask_head.class_agnostic"}
    assert narrow["(c)"] == narrow["(d)"] == operators
