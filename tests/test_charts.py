"""Charts: round ticks within the range, labels that do not overlap, texts that stay texts."""

import re

import numpy as np
import pytest

from accelerated.analysis.charts import (
    POINTS,
    SMALL,
    Axis,
    Frame,
    Line,
    axis,
    bar_chart,
    line_chart,
    number,
    thinned,
)


@pytest.mark.parametrize(
    ("shown", "ticks"),
    [
        (Axis(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis(0, 2500), [0, 500, 1000, 1500, 2000, 2500]),
        (Axis(0, 0.37), [0, 0.1, 0.2, 0.3]),
        (Axis(0, 2.1, whole=True), [0, 1, 2]),
        (Axis(0, 1, whole=True), [0, 1]),
        (Axis(0.04, 3, log=True), [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (Axis(4, 512, log=True), [10, 30, 100, 300]),
        (Axis(1e-6, 100, log=True), [1e-6, 1e-4, 1e-2, 1, 100]),
        # Less than a decade.
        (Axis(1.1, 1.9, log=True), [1.2, 1.4, 1.6, 1.8]),
    ],
)
def test_ticks_are_round_numbers_of_the_range(shown, ticks):
    assert shown.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("seed", range(20))
def test_any_range_has_a_few_ticks(seed):
    rng = np.random.default_rng(seed)
    low = float(10 ** rng.uniform(-6, 5))
    high = low * float(1 + 10 ** rng.uniform(-2, 4))
    for shown in (Axis(low, high), Axis(0, high), Axis(low, high, log=True)):
        found = shown.ticks()
        assert 2 <= len(found) <= 7 and found == sorted(set(found))
        assert shown.low * 0.999 <= found[0] and found[-1] <= shown.high * 1.001


def test_an_axis_holds_its_values():
    assert axis([None, 0.5, float("nan"), 2.0]) == Axis(0, 2.08)
    assert axis([]) == axis([0.0]) == Axis(0, 1)
    logarithmic = axis([0.0, 0.1, 5], log=True)
    assert logarithmic.log and logarithmic.low < 0.1 and logarithmic.high > 5
    assert not axis([0.0], log=True).log
    assert Axis(0.1, 10, log=True).place(1) == pytest.approx(0.5)


def test_numbers_are_short():
    values = {
        (0.02, 0.005): "0.020",
        (2500, 500): "2,500",
        (90000, 30000): "90k",
        (1e-5, 0): "1e-5",
    }
    assert {pair: number(*pair) for pair in values} == values
    assert number(0.0, 0.2) == "0.0" and number(250) == "250"


def test_long_lines_are_means_of_neighbours():
    x, y = list(range(10_000)), [float(value % 2) for value in range(10_000)]
    few, means = thinned(x, y)
    assert POINTS / 2 < len(few) <= POINTS and means[:-1] == [0.5] * (len(means) - 1)
    assert thinned([1, 2], [None, 3.0]) == ([1, 2], [None, 3.0])


def test_a_line_is_broken_where_there_is_no_value():
    frame = Frame(Axis(0, 4), Axis(0, 1), SMALL)
    path = frame.path([0, 1, 2, 3, 4], [0.5, 0.5, 0.5, None, float("nan")])
    # The point in the middle of a level part is left out.
    assert path.count("M") == 1 and path.count("L") == 1
    assert frame.path([0, 1, 2], [0.1, None, 0.2]).count("M") == 2
    assert frame.path([0, 1], [None, None]) == ""


def test_names_at_the_ends_of_lines_do_not_overlap():
    frame = Frame(Axis(0, 1), Axis(0, 1), SMALL, ends=True)
    lines = [Line(f"{i}", [0, 1], [0, 0.001 * i], end=str(i)) for i in range(8)]
    placed = frame.heights(lines)
    heights = [height for _, height in placed]
    assert [line.end for line, _ in placed] == list("76543210")
    assert min(np.diff(heights)) >= 12 and heights[-1] <= SMALL[1]


def test_texts_are_escaped():
    bad = "</svg><script>\"'&"
    line = Line(bad, [0, 1], [0.2, 0.4], end=bad, best=1, key=bad, dots=True)
    histogram = bar_chart([0, 1], [("right", [2])], Axis(0, 1, label=bad), [bad], bad, [(0.5, bad)])
    for chart in (line_chart([line], Axis(0, 1, label=bad), Axis(0, 1), bad), histogram):
        assert "<script" not in chart and chart.count("</svg>") == 1
        assert not re.search(r'="[^"]*<', chart)


def test_a_bar_is_as_high_as_its_count():
    chart = bar_chart(
        [0, 1, 2], [("right", [1, 3]), ("wrong", [1, 0])], Axis(0, 2), ["one", "two"], "alt"
    )
    bars = re.findall(
        r'class="bar (\w+)" x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', chart
    )
    heights = [(look, float(height)) for look, height in bars]
    # No bar without a count.
    assert [look for look, _ in heights] == ["right", "wrong", "right"]
    assert heights[2][1] == pytest.approx(3 * heights[0][1], abs=0.2)
