"""Charts as SVG inside a page: axes, lines, bars. Their colours are those of the style sheet.

A mark's "look" is a list of CSS classes: `run1` .. `run8` for the colour of a run, `right` and
`wrong`, `dotted`, `dashed`. Charts are `Markup`: every text in them is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Values = Sequence[float | None]

# Units of the drawing, about pixels at the size at which the page shows a chart.
SMALL, LARGE = (320, 200), (420, 230)
TOP, BOTTOM, RIGHT = 10, 34, 12
# About the width of a character of a label, and the least distance of two lines of text.
LETTER, LINE = 6.3, 12
# A line is drawn with about this many points at most.
POINTS = 240


@dataclass(frozen=True)
class Axis:
    """The range of an axis. A logarithmic one starts above 0. The label of x stands below it.

    whole  whether its ticks are whole numbers
    """

    low: float
    high: float
    log: bool = False
    label: str = ""
    whole: bool = False

    def place(self, value: float) -> float:
        """Return where a value stands: 0 at the low end, 1 at the high end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return (value - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within the range, about `most` of them at most."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = self._within(10.0**power * factor for power in powers for factor in factors)
                if 2 < len(found) <= most:
                    return found
            if len(found) > most:
                return found[:: -(-len(found) // most)]
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(power * f for f in (1, 2, 2.5, 5, 10) if span / (power * f) < most)
        step = max(1, round(step)) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return self._within(step * n for n in range(first, first + most + 1))

    def _within(self, values: Iterable[float]) -> list[float]:
        slack = 1e-9 * (self.high - self.low)
        return [v for v in values if self.low - slack <= v <= self.high + slack]


UNIT = Axis(0, 1)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    name  of the line, for its tooltip and the description of the chart
    y     None or not finite where the line is broken
    look  CSS classes
    end   a short text where the line ends
    best  index of a point to be marked, or None
    key   by which a script finds the line
    dots  a dot with a tooltip for each point
    """

    name: str
    x: Sequence[float]
    y: Values
    look: str = "run1"
    end: str = ""
    best: int | None = None
    key: str = ""
    dots: bool = False


def finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that are finite numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def axis(values: Iterable[float | None], *, log: bool = False, label: str = "") -> Axis:
    """Return an axis that holds all values: a linear one from 0, a logarithmic one if it can."""
    known = finite(values)
    positive = [value for value in known if value > 0]
    if log and positive:
        low, high = min(positive), max(positive)
        # At least a factor of 2, so that noise does not look like progress.
        room = max(1.06, math.sqrt(2 * low / high))
        return Axis(low / room, high * room, log=True, label=label)
    return Axis(min([0.0, *known]), max([0.0, *known]) * 1.04 or 1.0, label=label)


def number(value: float, step: float = 0.0) -> str:
    """Write a number of an axis whose ticks are `step` apart; 0: the fewest digits."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+").replace("e+", "e")
    if abs(value) >= 20000 and not value % 1000:
        return f"{value / 1000:,.0f}k"
    if not step:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    digits = next(n for n in range(9) if n == 8 or abs(step * 10**n % 1) < 1e-6)
    return f"{value:,.{digits}f}"


def thinned(x: Sequence[float], y: Values, most: int = POINTS) -> tuple[list[float], Values]:
    """Return means of equally many neighbours, so that at most `most` points are left."""
    size = -(-len(x) // most) if x else 1
    if size == 1:
        return list(x), list(y)
    starts = range(0, len(x), size)
    means = [_mean(finite(y[start : start + size])) for start in starts]
    return [sum(x[s : s + size]) / len(x[s : s + size]) for s in starts], means


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def line_chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    alt: str,
    *,
    size: tuple[int, int] = SMALL,
    diagonal: bool = False,
) -> Markup:
    """Draw lines. `alt` describes the chart to those who do not see it."""
    frame = Frame(x, y, size, any(line.end for line in lines))
    marks = [frame.axes()]
    if diagonal:
        ends = frame.path([x.low, x.high], [y.low, y.high])
        marks.append(Markup('<path class="rule dashed" d="{}"/>').format(ends))
    for line in lines:
        key = Markup(' data-key="{}"').format(line.key) if line.key else ""
        path = frame.path(*thinned(line.x, line.y))
        marks.append(
            Markup('<path class="line {}"{} d="{}"><title>{}</title></path>').format(
                line.look, key, path, line.name
            )
        )
        marks += frame.dots(line)
    marks += frame.ends(lines)
    return _drawing(marks, alt, frame)


def bar_chart(
    edges: Sequence[float],
    stacks: Sequence[tuple[str, Sequence[float]]],
    x: Axis,
    titles: Sequence[str],
    alt: str,
    rules: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw a histogram.

    edges   [n + 1]
    stacks  [(look, [n] heights)], the lowest first
    titles  [n] tooltips
    rules   [(x, text on its right)]: vertical lines
    """
    totals = [sum(heights) for heights in zip(*(values for _, values in stacks), strict=True)]
    # Room for the texts of the rules.
    room = 1.2 if rules else 1.04
    frame = Frame(x, Axis(0, room * max([1, *totals]), whole=True))
    marks = [frame.axes()]
    inside = [(place, text) for place, text in rules if x.low < place < x.high]
    for place, _ in inside:
        top, bottom = frame.y.high, frame.y.low
        path = frame.path([place, place], [bottom, top])
        marks.append(Markup('<path class="rule" d="{}"/>').format(path))
    for index, ((left, right), title) in enumerate(zip(pairwise(edges), titles, strict=True)):
        base, rects = 0.0, []
        for look, values in stacks:
            (x1, y2), (x2, y1) = frame.at(left, base), frame.at(right, base + values[index])
            base += values[index]
            if values[index]:
                rects.append(
                    Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                        look, *map(_short, (x1 + 0.5, y1, max(x2 - x1 - 1, 0.5), y2 - y1))
                    )
                )
        if rects:
            marks.append(Markup("<g><title>{}</title>{}</g>").format(title, Markup("").join(rects)))
    for place, text in inside:
        px, py = frame.at(place, frame.y.high)
        marks.append(_text(px + 3, py + 8, text, "note"))
    return _drawing(marks, alt, frame)


class Frame:
    """The rectangle between the axes.

    size  of the drawing: width, height
    ends  whether texts stand at the ends of lines
    """

    def __init__(self, x: Axis, y: Axis, size: tuple[int, int] = SMALL, ends: bool = False):
        self.width, self.height = size
        self.x, self.y = x, y
        self.ticks = y.ticks(5)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 and not y.log else 0.0
        self.labels = [number(tick, step) for tick in self.ticks]
        self.left = 8 + LETTER * max(map(len, self.labels), default=1)
        self.right = self.width - RIGHT - (8 if ends else 0)
        self.bottom = self.height - BOTTOM

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point in the drawing."""
        return (
            self.left + self.x.place(x) * (self.right - self.left),
            self.bottom - self.y.place(y) * (self.bottom - TOP),
        )

    def path(self, x: Sequence[float], y: Values) -> str:
        """Return the `d` of a path through the points; points on a straight line are left out."""
        out: list[str] = []
        part: list[tuple[float, float]] = []
        for px, py in [*zip(x, y, strict=True), (0.0, None)]:
            if py is not None and math.isfinite(py):
                part.append(self.at(px, py))
                continue
            if part:
                out.append("M" + "L".join(f"{_short(a)},{_short(b)}" for a, b in _bends(part)))
            part = []
        return "".join(out)

    def axes(self) -> Markup:
        """Draw lines at the ticks of y, the ticks of x, their numbers and the label of x."""
        marks = []
        for tick, label in zip(self.ticks, self.labels, strict=True):
            _, py = self.at(self.x.low, tick)
            line = f"M{_short(self.left)},{_short(py)}H{_short(self.right)}"
            marks.append(Markup('<path class="grid" d="{}"/>').format(line))
            marks.append(_text(self.left - 5, py + 4, label, "tick end"))
        ticks = self.x.ticks(6)
        step = ticks[1] - ticks[0] if len(ticks) > 1 and not self.x.log else 0.0
        previous = 0.0
        for tick in ticks:
            px, _ = self.at(tick, self.y.low)
            label = number(tick, step)
            half = LETTER * len(label) / 2
            at = min(px, self.width - half - 1)
            line = f"M{_short(px)},{_short(self.bottom)}v4"
            marks.append(Markup('<path class="axis" d="{}"/>').format(line))
            if at - half > previous:
                marks.append(_text(at, self.bottom + 16, label, "tick middle"))
                previous = at + half + LETTER
        line = f"M{_short(self.left)},{_short(self.bottom)}H{_short(self.right)}"
        marks.append(Markup('<path class="axis" d="{}"/>').format(line))
        marks.append(_text(self.right, self.height - 4, self.x.label, "tick end"))
        return Markup("").join(marks)

    def dots(self, line: Line) -> list[Markup]:
        """Draw the points of a line, with their values as tooltips, and a ring around the best."""
        out = []
        for index, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            best = index == line.best
            if y is None or not math.isfinite(y) or not (line.dots or best):
                continue
            title = f"{line.name}, {self.x.label or 'x'} {number(x)}: {y:.3f}"
            px, py = map(_short, self.at(x, y))
            out.append(
                Markup(
                    '<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
                ).format(
                    line.look + (" best" if best else ""),
                    px,
                    py,
                    5 if best else 2.5,
                    title + (", the best" if best else ""),
                )
            )
        return out

    def ends(self, lines: Sequence[Line]) -> list[Markup]:
        """Write the texts at the ends of lines, moved apart where they would overlap."""
        return [
            Markup('<text class="name {}" data-end="{}" x="{}" y="{}">{}</text>').format(
                line.look, line.key, _short(self.right + 4), _short(height), line.end
            )
            for line, height in self.heights(lines)
        ]

    def heights(self, lines: Sequence[Line]) -> list[tuple[Line, float]]:
        """Return where the texts at the ends of lines stand, from the highest line to the lowest.

        Lines without a text or without a value are left out.
        """
        places = [
            (self.at(self.x.low, known[-1])[1], line)
            for line in lines
            if line.end and (known := finite(line.y))
        ]
        places.sort(key=lambda place: place[0])
        heights = [place for place, _ in places]
        for index in range(1, len(heights)):
            heights[index] = max(heights[index], heights[index - 1] + LINE)
        for index in reversed(range(len(heights))):
            most = self.bottom if index == len(heights) - 1 else heights[index + 1] - LINE
            heights[index] = min(heights[index], most)
        return [(line, h + 4) for h, (_, line) in zip(heights, places, strict=True)]


def swatch(look: str) -> Markup:
    """Draw the sign of a line, or of a bar with the look `right` or `wrong`, for a legend."""
    shape = '<path class="line {}" d="M1,6H25"/>'
    if look in ("right", "wrong"):
        shape = '<rect class="bar {}" x="7" y="0" width="12" height="12"/>'
    drawn = Markup(shape).format(look)
    return Markup('<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{}</svg>').format(
        drawn
    )


def _bends(points):
    """Leave out points between two others of the same height: most of a curve's steps."""
    kept = [
        here
        for before, here, after in zip(points, points[1:], points[2:], strict=False)
        if not before[1] == here[1] == after[1]
    ]
    return [points[0], *kept, points[-1]]


def _short(value: float) -> str:
    """Write a coordinate with one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, look: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        look, _short(x), _short(y), text
    )


def _drawing(marks: Iterable[Markup], alt: str, frame: Frame) -> Markup:
    opened = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        frame.width, frame.height, alt
    )
    return opened + Markup("").join(marks) + Markup("</svg>")
