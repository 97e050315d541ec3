"""The ablation: its rows, the results it keeps, the tables and verdicts it makes of them."""

import csv
import io
import json
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.console import Console

from accelerated.command_line import cli, report
from accelerated.data.synthetic import ShapesDataset
from accelerated.experiments import ablate, ablation_results, ablation_rows
from reference import config as configuration
from reference import shapes

SCALES = {"reduced": ablation_rows.REDUCED, "full": ablation_rows.FULL}
# As little as can be trained: accuracy is not tested here.
SMALL = (
    "transform.min_size=[64]",
    "transform.max_size=64",
    "backbone.width=8",
    "fpn.channels=8",
    "box_head.channels=16",
    "box_head.batch_size=8",
    "mask_head.channels=8",
    "mask_head.mlp_channels=8",
    "optimizer.batch_size=2",
    "rpn.pre_nms_top_n_test=8",
    "rpn.post_nms_top_n_test=4",
)


def data(count=2):
    return ShapesDataset(count, seed=1, size=32, style=shapes.HARD), ShapesDataset(
        1, seed=2, size=32, style=shapes.HARD
    )


def planned(scale=ablation_rows.REDUCED, seeds=1, iterations=1, rows=None, **options):
    """Plan an ablation; return (comparisons, runs of the first `rows` rows)."""
    compared, todo = ablate.plan(
        scale, *data(), data="test", changes=SMALL, seeds=seeds, iterations=iterations, **options
    )
    names = list(dict.fromkeys(run.name for run in todo))[:rows]
    return compared, [run for run in todo if run.name in names]


def run(todo, output, **options):
    said = []
    ablate.ablate(ablate.unfinished(todo, output), output, *data(), announce=said.append, **options)
    return said


def differences(a, b, path=""):
    for name in a:
        if isinstance(a[name], dict):
            yield from differences(a[name], b[name], f"{path}{name}.")
        elif a[name] != b[name]:
            yield path + name


def fields(before, after):
    """Return the fields in which two rows differ."""
    a, b = ({change.split("=")[0]: change for change in row.changes} for row in (before, after))
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_rows_differ_in_the_fields_they_name(scale):
    base = ablation_rows.base(scale)
    compared = ablation_rows.comparisons(scale)
    assert [len(comparison.rows) for comparison in compared] == [4, 2, 4, 2, 2, 2]
    for comparison in compared:
        made = []
        for row in comparison.rows:
            config = configuration.override(base, *row.changes)
            configuration.check(config)
            made.append((row, configuration.to_dict(config)))
        for (row, values), (other, others) in pairwise(made):
            assert set(differences(values, others)) <= fields(row, other) and values != others
    narrow = {comparison.title[:3]: fields(*comparison.rows[-2:]) for comparison in compared[1:]}
    operators = {
        f"{head}.pooler.{name}"
        for head in ("box_head", "mask_head")
        for name in ("operator", "aggregate")
    }
    assert (
        narrow["(b)"] == {"mask_head.loss"}
        and narrow["(e)"] == {"mask_head.kind"}
        and narrow["(f)"] == {"mask_head.class_agnostic"}
    )
    assert narrow["(c)"] == narrow["(d)"] == operators


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_equal_rows_are_one_run_and_seeds_come_in_turn(scale):
    compared, todo = planned(scale, seeds=2)
    assert len({(run.changes, run.seed) for run in todo}) == len(todo) == 2 * 12
    assert [run.seed for run in todo] == [0] * 12 + [1] * 12
    assert {row.changes for comparison in compared for row in comparison.rows} == {
        run.changes for run in todo
    }
    assert len({run.key for run in todo}) == len(todo)


def test_every_row_trains_on_coco_files_by_one_command_and_only_once(tmp_path, monkeypatch, capsys):
    (data_json, images), (val_json, val_images) = (
        each.write_coco(tmp_path / name)
        for name, each in zip(("train", "val"), data(), strict=True)
    )

    def call(*more):
        command = ["maskrcnn", "ablate", "--data", data_json, "--images", images]
        command += ["--val", val_json, "--val-images", val_images, "--output", tmp_path / "out"]
        command += ["--seeds", 1, "--iterations", 1, "--jobs", 1, "--device", "cpu"]
        for change in SMALL:
            command += ["--set", change]
        monkeypatch.setattr("sys.argv", [str(word) for word in (*command, *more)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    code, said, error = call()
    assert code == 0, error
    assert all(part in said for part in ("12/12", "mask AP 0.0 after", "not checked"))
    assert all(row in said for row in ("ResNet-34-FPN", "RoIWarp", "class-agnostic"))
    results = list((tmp_path / "out" / "results").iterdir())
    assert len(results) == 12 and not list((tmp_path / "out" / "unfinished").iterdir())
    assert (tmp_path / "out" / "ablation.csv").exists() and (
        tmp_path / "out" / "ablation.png"
    ).exists()

    code, said, _ = call()
    assert code == 0 and "0 of 12 runs to do" in said and "mask AP 0.0 after" not in said
    table = (tmp_path / "out" / "ablation.csv").read_bytes()
    code, _, error = call("--set", "optimizer.learning_rate=0.1")
    assert (
        code == 2
        and "other settings" in error
        and (tmp_path / "out" / "ablation.csv").read_bytes() == table
    )


def test_the_command_trains_on_shapes_by_default(tmp_path, monkeypatch, capsys):
    sizes = []

    def instead(runs, output, train_data, val_data, **options):
        sizes.append((len(runs), len(train_data), len(val_data), options["jobs"]))

    monkeypatch.setattr(ablate, "ablate", instead)
    command = ["maskrcnn", "ablate", "--output", str(tmp_path), "--jobs", "3", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code and sizes == [(24, 2000, 120, 3)]
    assert "24 of 24 runs to do: 600 steps each, on 2000 images" in capsys.readouterr().out


def test_a_full_row_trains(tmp_path):
    # The C4 model with stage 5 on the RoIs.
    _, todo = planned(ablation_rows.FULL, rows=1)
    assert todo[0].config.shared_head == "res5_unstrided" and len(run(todo, tmp_path)) == 1


def test_finished_runs_are_kept_and_unfinished_ones_go_on(tmp_path, monkeypatch):
    _, todo = planned(rows=2, iterations=2)
    train = ablate.train

    def interrupted_in_the_second(config, dataset, output, **options):
        result = train(
            config,
            dataset,
            output,
            **options | ({"iterations": 1} if config != todo[0].config else {}),
        )
        return replace(result, interrupted=None if config == todo[0].config else signal.SIGTERM)

    monkeypatch.setattr(ablate, "train", interrupted_in_the_second)
    with pytest.raises(SystemExit, match="143"):
        run(todo, tmp_path)
    (kept,) = (tmp_path / "results").iterdir()
    written = kept.stat().st_mtime_ns
    (half,) = (tmp_path / "unfinished").iterdir()
    assert (half / "last").exists()

    resumed = []
    monkeypatch.setattr(
        ablate,
        "train",
        lambda *a, **options: resumed.append(options["resume"]) or train(*a, **options),
    )
    assert [line.split()[0] for line in run(todo, tmp_path)] == ["1/1"] and resumed == [True]
    assert kept.stat().st_mtime_ns == written and run(todo, tmp_path) == []
    with pytest.raises(ValueError, match="other settings"):
        run(planned(rows=2, iterations=3)[1], tmp_path)


def test_two_at_a_time_give_what_one_at_a_time_gives(tmp_path):
    _, todo = planned(rows=2)
    run(todo, tmp_path / "one")
    run(todo, tmp_path / "two", jobs=2)
    for planned_run in todo:
        alone, parallel = (
            json.loads((tmp_path / name / "results" / f"{planned_run.key}.json").read_text())
            for name in ("one", "two")
        )
        assert alone | {"seconds": 0} == parallel | {"seconds": 0}


def put(todo, output, values):
    """Write results as if measured; `values` {name: mask AP of each seed, in points}."""
    (output / "results").mkdir(parents=True)
    for todo_run in todo:
        if todo_run.seed < len(values.get(todo_run.name, ())):
            numbers = dict.fromkeys(ablate.METRICS, 0.5) | {
                "mask AP": values[todo_run.name][todo_run.seed] / 100
            }
            (output / "results" / f"{todo_run.key}.json").write_text(json.dumps(numbers))


def test_table_and_verdicts(tmp_path):
    compared, todo = planned(seeds=3)
    values = {
        "ResNet-18-C3": (20, 21, 22),
        "softmax": (10, 11, 12),
        "RoIPool": (25, 26, 27),
        "RoIWarp": (20, 21, 22),
        "class-agnostic": (21,),
    }
    put(todo, tmp_path, values)
    table = ablation_results.lines(compared, todo, tmp_path)
    by_name = {line.row.name: line for line in table}
    assert (
        by_name["sigmoid"].values
        == by_name["RoIAlign, mean"].values
        == by_name["ResNet-18-C3"].values
    )
    assert by_name["softmax"].text("mask AP") == "11.0 ± 1.0" and by_name["softmax"].seeds == 3
    assert (
        by_name["class-agnostic"].text("mask AP") == "21.0"
        and by_name["MLP"].text("mask AP") == "-"
    )
    assert ablation_results.spread(table) == pytest.approx(1)
    pairs = {(o.better, o.worse): o for o in ablation_results.orderings(table)}
    assert pairs["sigmoid", "softmax"].verdict == "reproduced" and pairs[
        "sigmoid", "softmax"
    ].error == pytest.approx(2 * (2 / 3) ** 0.5)
    assert (
        pairs["RoIAlign, mean", "RoIPool"].verdict == "reversed"
        and pairs["RoIWarp", "RoIPool"].verdict == "different, unlike in the paper"
    )
    assert (
        pairs["RoIAlign, mean", "RoIWarp"].verdict
        == pairs["class-specific", "class-agnostic"].verdict
        == "undecided"
    )
    assert len(pairs) == 5

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(*report.ablation(table, 7))
    shown = console.export_text()
    assert (
        "after 7 steps" in shown
        and "over 3 seeds" in shown
        and "11.0 ± 1.0" in shown
        and "+10.0 ± 1.6" in shown
        and "reversed" in shown
    )

    ablation_results.write(table, tmp_path, 7)
    rows = list(csv.DictReader((tmp_path / "ablation.csv").open()))
    assert len(rows) == 16 and (tmp_path / "ablation.png").stat().st_size > 10_000
    softmax = next(row for row in rows if row["row"] == "softmax")
    assert (
        softmax["mask AP mean"],
        softmax["mask AP standard deviation"],
        softmax["seeds"],
        softmax["iterations"],
    ) == (
        "11.000",
        "1.000",
        "3",
        "7",
    )
    assert (
        softmax["mask AP of each seed"] == "10.000 11.000 12.000"
        and "mask_head.loss=softmax" in softmax["changes of the base"]
    )


def test_spread_counts_a_run_once_and_a_pair_is_judged_by_the_larger(tmp_path):
    compared, todo = planned(seeds=2)
    put(
        todo,
        tmp_path,
        {
            "ResNet-18-C3": (20, 24),
            "softmax": (17, 17),
            "RoIPool": (17, 17),
            "ResNet-34-FPN": (30, 30),
        },
    )
    table = ablation_results.lines(compared, todo, tmp_path)
    # The first row stands in four comparisons.
    assert ablation_results.spread(table) == pytest.approx((8 / 4) ** 0.5)
    pairs = {(o.better, o.worse): o.error for o in ablation_results.orderings(table)}
    # 4 by the spread of these two; by that of all rows it would be 2.8.
    assert pairs["sigmoid", "softmax"] == pytest.approx(2 * (8 / 2) ** 0.5)


def test_one_seed_decides_nothing(tmp_path):
    compared, todo = planned()
    put(todo, tmp_path, {"ResNet-18-C3": (20,), "softmax": (10,)})
    table = ablation_results.lines(compared, todo, tmp_path)
    assert ablation_results.spread(table) is None and ablation_results.orderings(table) == []


def test_a_number_outside_its_range_is_refused():
    changes = (*SMALL, "box_head.score_threshold=2")
    with pytest.raises(ValueError, match=r"box_head\.score_threshold"):
        ablate.plan(ablation_rows.REDUCED, *data(), data="test", changes=changes)
