"""Drawing for the notebooks: places and colours what others computed, and computes nothing itself.

One system of coordinates in every picture: pixel i spans [i, i + 1), its centre is at i + 0.5.
A colour means one thing everywhere, and a marker, a dash or a hatch says the same again.
"""

import html
import inspect
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
from IPython.display import HTML, Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, MaxNLocator
from PIL import Image as Pillow

# Roles. Okabe and Ito's colours, the blue darker, stay apart for every kind of colour vision.
ASKED, USED, SAMPLE, GRADIENT = "black", "#D55E00", "#0066A8", "#009E73"
QUIET = "#8A8A8A"
WATER = "#CFE3F2"
# Lines of one plot: colour, marker and dash differ together.
SERIES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", (0, (6, 2, 1, 2, 1, 2))),
)
# Maps of values: amounts from small to large, differences around 0, brightness of images.
MAGNITUDE, SIGNED, BRIGHTNESS = "cividis", "RdBu_r", "gray"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
    "legend.frameon": False,
}
DPI = 100
WIDEST = 10.0
SMALLEST_TEXT = 8.0
CAPTION = range(40, 401)


def figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], **keywords: Any
) -> tuple[Figure, Any]:
    """Return a figure of `size` (width, height) inches and its axes, as `plt.subplots` does.

    keywords  of `Figure.subplots`, such as width_ratios
    """
    matplotlib.rcParams.update(STYLE)
    made = Figure(figsize=size, dpi=DPI, layout="constrained")
    return made, made.subplots(rows, columns, **keywords)


def mosaic(
    layout: Sequence[Sequence[str]], *, size: tuple[float, float], **keywords: Any
) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure of `size` (width, height) inches and its axes by name.

    layout    rows of names; equal neighbours are one axes, as in `Figure.subplot_mosaic`
    keywords  of `Figure.subplot_mosaic`, such as height_ratios
    """
    matplotlib.rcParams.update(STYLE)
    made = Figure(figsize=size, dpi=DPI, layout="constrained")
    return made, made.subplot_mosaic([list(row) for row in layout], **keywords)


def show(figure: Figure, caption: str, *, colours: int = 128) -> None:
    """Display a figure as a small PNG, and under it a caption for those who cannot see it."""
    strip([figure], caption, colours=colours)


def strip(figures: Sequence[Figure], caption: str, *, colours: int = 128) -> None:
    """Display figures as one picture, side by side as far as they fit: steps in time, for example.

    The figures have one size. The fewer of the 256 possible colours, the smaller the picture.
    """
    for part in figures:
        check(part, caption)
    parts = [_pixels(part) for part in figures]
    width, height = parts[0].size
    columns = max(1, min(len(parts), int(WIDEST * DPI) // width))
    rows = -(-len(parts) // columns)
    whole = Pillow.new("RGB", (columns * width, rows * height), "white")
    for i, part in enumerate(parts):
        whole.paste(part, (i % columns * width, i // columns * height))
    buffer = io.BytesIO()
    whole = whole.quantize(colours, kmeans=1, dither=Pillow.Dither.NONE)
    whole.save(buffer, "png", optimize=True)
    display(Image(buffer.getvalue()), Markdown(f"*{caption}*"))


def explore(
    picture: Callable[..., Figure],
    caption: str,
    positions: Sequence[Mapping[str, float]],
    **sliders: tuple[float, float, float],
) -> None:
    """Display `picture` at three positions, and where a kernel runs under sliders as well.

    picture    called with one keyword per slider; returns a Figure
    positions  values of the sliders for those who read without a kernel; the first is the start
    sliders    name=(lowest, highest, step)
    """
    import ipywidgets as widgets

    strip([picture(**position) for position in positions], caption)

    controls = {
        name: widgets.FloatSlider(
            value=positions[0][name],
            min=low,
            max=high,
            step=step,
            description=name.replace("_", " "),
            continuous_update=False,
            style={"description_width": "initial"},
        )
        for name, (low, high, step) in sliders.items()
    }
    drawn = widgets.Image(value=_png(picture(**positions[0])))

    def redraw(_):
        position = {name: control.value for name, control in controls.items()}
        drawn.value = _png(picture(**position))

    for control in controls.values():
        control.observe(redraw, "value")
    display(widgets.VBox([*controls.values(), drawn]))


def check(figure: Figure, caption: str) -> None:
    """Raise AssertionError unless everything in a figure is named, and large enough to read."""
    assert len(caption) in CAPTION, f"a caption of {len(caption)} characters: {caption}"
    width = figure.get_size_inches()[0]
    assert width <= WIDEST, f"the figure is {width} inches wide, the page {WIDEST}"
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            continue
        title = axes.get_title("left") or axes.get_title()
        if axes.axison or title:
            assert title, "axes without a title"
        for axis in (axes.xaxis, axes.yaxis):
            named = isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter)
            if axes.axison and not named and len(axis.get_majorticklocs()):
                assert axis.label.get_text(), f"{title!r}: an axis without a label and its unit"
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            size = text.get_fontsize()
            assert size >= SMALLEST_TEXT, f"{text.get_text()!r} is {size} points high"


def image(axes: Axes, pixels: np.ndarray, title: str, *, unit: str = "pixels") -> None:
    """Draw an image [H, W, 3] or [H, W] with pixel i on [i, i + 1)."""
    height, width = pixels.shape[:2]
    grey = {"cmap": BRIGHTNESS} if pixels.ndim == 2 else {}
    axes.imshow(pixels, extent=(0, width, height, 0), **grey)
    axes.set(title=title, xlabel=f"x, {unit}", ylabel=f"y, {unit}")
    axes.set(xlim=(0, width), ylim=(height, 0))


def cells(
    axes: Axes,
    values: np.ndarray,
    title: str,
    *,
    cmap: str = BRIGHTNESS,
    limits: tuple[float, float] | None = None,
    unit: str = "feature pixels",
    grid: bool = True,
) -> Any:
    """Draw a map [H, W] as cells whose edges lie on whole numbers; returns it for a colour bar."""
    height, width = values.shape
    low, high = _limits(values, cmap) if limits is None else limits
    drawn = axes.imshow(values, extent=(0, width, height, 0), cmap=cmap, vmin=low, vmax=high)
    axes.set(title=title, xlabel=f"x, {unit}", ylabel=f"y, {unit}")
    if grid:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
        edges = {"colors": "white", "alpha": 0.25, "linewidth": 0.5}
        axes.vlines(np.arange(width + 1), 0, height, **edges)
        axes.hlines(np.arange(height + 1), 0, width, **edges)
        axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def colour_bar(axes: Axes, drawn: Any, unit: str) -> None:
    """Put the scale of what `cells` returned beside its axes, with its unit."""
    axes.figure.colorbar(drawn, ax=axes, label=unit, shrink=0.85)


def box(
    axes: Axes, xyxy: Sequence[float], role: str = ASKED, *, bins: int = 0, label: str | None = None
) -> None:
    """Draw a box xyxy: dashed if it is asked for, solid otherwise, with `bins` per axis."""
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    xs, ys = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
    axes.plot(xs, ys, color="white", linewidth=3.4, alpha=0.75, solid_capstyle="round")
    dash = (0, (4, 2)) if role == ASKED else "-"
    axes.plot(xs, ys, color=role, linewidth=1.7, linestyle=dash, label=label)
    for t in np.linspace(0, 1, bins + 1)[1:-1] if bins else ():
        axes.plot([x1 + t * (x2 - x1)] * 2, [y1, y2], color=role, linewidth=0.8)
        axes.plot([x1, x2], [y1 + t * (y2 - y1)] * 2, color=role, linewidth=0.8)


def boxes(axes: Axes, xyxy: np.ndarray, weights: np.ndarray, role: str = USED) -> None:
    """Draw many boxes [R, 4] as thin lines, each the more opaque the higher its weight in [0, 1].

    The boxes of highest weight lie on top.
    """
    for i in np.argsort(weights, kind="stable"):
        (x1, y1, x2, y2), alpha = xyxy[i], float(weights[i])
        style = {"fill": False, "edgecolor": role, "linewidth": 1.0, "alpha": alpha}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def bins(axes: Axes, rows: np.ndarray, columns: np.ndarray) -> None:
    """Draw bins of whole cells, rows [P_h, 2] and columns [P_w, 2]: first and one past the last.

    Each is drawn a little inside its cells, so that bins that overlap stay apart.
    """
    for top, bottom in rows + np.array([0.1, -0.1]):
        for left, right in columns + np.array([0.1, -0.1]):
            size = right - left, bottom - top
            style = {"fill": False, "edgecolor": USED, "linewidth": 1.3, "linestyle": ":"}
            axes.add_patch(Rectangle((left, top), *size, **style))


def sheet(axes: Axes, maps: Sequence[np.ndarray], columns: int, *, cmap: str = MAGNITUDE) -> None:
    """Draw maps side by side in rows of `columns`, each one unit wide and high and scaled alone."""
    for i, values in enumerate(maps):
        (y, x), (low, high) = divmod(i, columns), _limits(values, cmap)
        place = {"extent": (1.08 * x, 1.08 * x + 1, 1.08 * y + 1, 1.08 * y)}
        axes.imshow(values, cmap=cmap, vmin=low, vmax=high, **place)
    rows = -(-len(maps) // columns)
    axes.set(xlim=(0, 1.08 * columns - 0.08), ylim=(1.08 * rows - 0.08, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def samples(axes: Axes, x: np.ndarray, y: np.ndarray, *, label: str = "sample") -> None:
    """Draw the grid of samples at columns x and rows y, given as indices of feature pixels."""
    grid_x, grid_y = np.meshgrid(np.ravel(x) + 0.5, np.ravel(y) + 0.5)
    style = {"color": SAMPLE, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.plot(grid_x.ravel(), grid_y.ravel(), ".", label=label, **style)


def outline(axes: Axes, mask: np.ndarray, role: str = USED, *, label: str | None = None) -> None:
    """Draw the outline of a mask [H, W] bool along the edges of its pixels."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    horizontal = [[(x - 1, y), (x, y)] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    vertical = [[(x, y - 1), (x, y)] for y, x in zip(rows, columns, strict=True)]
    for colour, width, name in (("white", 3.0, None), (role, 1.4, label)):
        points = [p for a, b in horizontal + vertical for p in (a, b, (np.nan, np.nan))]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, color=colour, linewidth=width, label=name, solid_capstyle="projecting")


def numbers(
    axes: Axes,
    values: np.ndarray,
    title: str,
    *,
    cmap: str = MAGNITUDE,
    limits: tuple[float, float] | None = None,
    form: str = "{:.0f}",
    size: float = 8,
    zeros: bool = True,
) -> None:
    """Draw a small matrix with every number in its cell; without `zeros`, cells of 0 are empty."""
    low, high = _limits(values, cmap) if limits is None else limits
    drawn = axes.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="equal")
    for (y, x), value in np.ndenumerate(values):
        if value or zeros:
            axes.text(x, y, form.format(value), **_ink(drawn, value, size))
    axes.set(title=title, xticks=[], yticks=[])


def write(axes: Axes, values: np.ndarray, *, form: str = "{:.2f}", size: float = 8) -> None:
    """Write every value other than 0 into its cell, over what `cells` drew."""
    for (y, x), value in np.ndenumerate(values):
        if value:
            style = _ink(axes.images[0], value, size)
            axes.text(x + 0.5, y + 0.5, form.format(value), clip_on=True, **style)


def equation(parts: Sequence[tuple[np.ndarray, str] | str], *, form: str = "{:.2f}") -> Figure:
    """Return a figure of matrices in a row, each (values, title), with signs such as "=" between.

    Amounts in [0, 1] are drawn as weights, everything else as brightness.
    """
    widths = [0.5 if isinstance(part, str) else max(part[0].shape[1], 2) for part in parts]
    made, row = figure(1, len(parts), size=(WIDEST, 3.2), width_ratios=widths)
    for axes, part in zip(row, parts, strict=True):
        if isinstance(part, str):
            axes.text(0.5, 0.5, part, ha="center", va="center", fontsize=18)
            axes.axis("off")
        elif np.abs(part[0]).max(initial=0) <= 1:
            numbers(axes, *part, form=form, limits=(0, 1), zeros=False)
        else:
            numbers(axes, *part, cmap=BRIGHTNESS)
    return made


def bars(
    axes: Axes,
    values: Mapping[str, float],
    title: str,
    *,
    unit: str,
    marked: Sequence[str] = (),
    form: str = "{:.3g}",
) -> None:
    """Draw a horizontal bar per name with its number; those `marked` are vermilion and hatched."""
    names = list(values)
    drawn = axes.barh(range(len(names)), list(values.values()), color=SAMPLE)
    for name, bar in zip(names, drawn, strict=True):
        if name in marked:
            bar.set(facecolor=USED, hatch="//", edgecolor="white")
    axes.bar_label(drawn, [form.format(value) for value in values.values()], padding=3)
    axes.set(title=title, xlabel=unit)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def ledger(
    axes: Axes, values: np.ndarray, marked: np.ndarray, title: str, *, unit: str, label: str
) -> None:
    """Draw the addends of a sum as bars by falling size; those `marked` (bool) are hatched."""
    order = np.argsort(-values, kind="stable")
    for chosen, colour, hatch, name in ((marked, USED, "//", label), (~marked, QUIET, "", "other")):
        (places,) = np.nonzero(chosen[order])
        bars = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}
        axes.bar(places, values[order][places], width=1.0, label=name, **bars)
    axes.set(title=title, xlabel="place by size, no unit", ylabel=unit)
    axes.legend()


def curve(
    axes: Axes,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    title: str,
    *,
    xlabel: str,
    ylabel: str,
    markers: bool = True,
) -> None:
    """Draw one line per name of `series` over x, apart by colour, marker and dash."""
    for (name, y), (colour, marker, dash) in zip(series.items(), SERIES, strict=False):
        style = {"color": colour, "linestyle": dash, "linewidth": 1.5, "label": name}
        every = {"marker": marker, "markersize": 5, "markevery": max(1, len(x) // 20)}
        axes.plot(x, y, **style, **(every if markers else {}))
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.legend()


def patch(axes: Axes, xyxy: Sequence[float], colour: str, *, alpha: float = 0.6) -> None:
    """Fill a rectangle xyxy."""
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    corner = min(x1, x2), min(y1, y2)
    axes.add_patch(Rectangle(corner, abs(x2 - x1), abs(y2 - y1), color=colour, alpha=alpha, lw=0))


def river(figure: Figure, stations: Sequence[Axes]) -> None:
    """Draw a stream behind the axes that joins them in their order, with arrows between them.

    Where the order changes from one row to the next, the stream turns outside of the right edge.
    """
    figure.draw_without_rendering()
    places = [axes.get_position() for axes in stations]
    course, arrows = [], []
    for here, there in pairwise(places):
        start, end = _middle(here), _middle(there)
        course.append(start)
        if here.y0 > there.y1:
            course += [(here.x1 + 0.03, y) for y in (start[1], end[1])]
            arrows.append((here.x1 + 0.03, (start[1] + end[1]) / 2, "v"))
        else:
            low, high = sorted([here.x0, here.x1, there.x0, there.x1])[1:3]
            arrows.append(((low + high) / 2, start[1], ">" if end[0] > start[0] else "<"))
    x, y = zip(*course, _middle(places[-1]), strict=True)
    water = {"color": WATER, "linewidth": 30, "solid_joinstyle": "round", "zorder": -1}
    figure.add_artist(Line2D(x, y, **water))
    for x, y, marker in arrows:
        style = {"marker": marker, "markersize": 9, "color": SAMPLE, "linestyle": ""}
        figure.add_artist(Line2D([x], [y], zorder=5, **style))


def legend(figure: Figure, *, columns: int = 4) -> None:
    """Put one legend of everything labelled in the figure below it, instead of those inside."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        if axes.get_legend():
            axes.get_legend().remove()
    columns = max(1, min(len(found), columns))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def table(rows: Mapping[str, Sequence[Any]], columns: Sequence[str], *, text: bool = False) -> None:
    """Display rows {name: values} under the heads `columns`, the first of which heads the names.

    text  the values are words, aligned to the left; Jupyter aligns cells to the right by default
    """
    style = ' style="text-align: left"' if text else ""

    def line(tag, entries):
        cells = (f"<{tag}{style}>{html.escape(str(entry))}</{tag}>" for entry in entries)
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", [name, *values]) for name, values in rows.items())
    display(HTML(f"<table>{line('th', columns)}{body}</table>"))


def source(function: Callable) -> None:
    """Display the code of a function as it stands in its file, without its docstring."""
    function = inspect.unwrap(function)
    text = inspect.getsource(function)
    if function.__doc__:
        head, _, body = text.partition('"""')
        text = head.rstrip() + "\n" + body.partition('"""')[2].lstrip("\n")
    _listing(inspect.getmodule(function), text)


def excerpt(module: ModuleType, first: str, last: str) -> None:
    """Display a module's lines from the first that contains `first` to the next with `last`.

    Raises ValueError if there are none.
    """
    text = inspect.getsource(module)
    start = text.rfind("\n", 0, text.index(first)) + 1
    _listing(module, text[start : text.find("\n", text.index(last, start))])


def say(text: str) -> None:
    """Display a sentence whose numbers have been computed."""
    display(Markdown(text))


def _middle(place):
    return (place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2


def _ink(drawn, value, size):
    """Return the style of a number in the cell of a map that has this value, light on dark."""
    low, high = drawn.get_clim()
    shade = drawn.cmap((value - low) / ((high - low) or 1))
    dark = np.dot(shade[:3], (0.299, 0.587, 0.114)) < 0.5
    ink = "white" if dark else "black"
    return {"ha": "center", "va": "center", "fontsize": size, "color": ink}


def _listing(module, text):
    """Display code under the name of its file."""
    where, code = module.__name__.replace(".", "/"), textwrap.dedent(text).rstrip()
    display(Markdown(f"`{where}.py`\n\n```python\n{code}\n```"))


def _limits(values, cmap):
    """Return the least and the largest value; around 0 for a map of differences."""
    low, high = float(np.min(values)), float(np.max(values))
    largest = max(abs(low), abs(high))
    return (-largest, largest) if cmap == SIGNED else (low, high)


def _pixels(figure):
    """Render a figure at its own size; RGB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Pillow.open(buffer).convert("RGB")


def _png(figure):
    buffer = io.BytesIO()
    _pixels(figure).save(buffer, "png")
    return buffer.getvalue()
