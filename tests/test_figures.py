"""Drawing of the notebooks: edges where they belong, colours that stay apart, everything named."""

import io
import itertools
from functools import partial

import figures as draw
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image

ROLES = {"asked": draw.ASKED, "used": draw.USED, "sample": draw.SAMPLE, "gradient": draw.GRADIENT}
CAPTION = "A caption which describes the picture to somebody who cannot see it."
# Machado, Oliveira and Fernandes 2009: severe deficiency, on linear RGB.
DEFICIENCIES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
# sRGB to CIE XYZ, and its white.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, deficiency):
    """CIE L*a*b* of a colour as somebody with a deficiency sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    t = XYZ @ seen / XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_roles_stay_apart(deficiency):
    for (a, first), (b, second) in itertools.combinations(ROLES.items(), 2):
        distance = np.linalg.norm(lab(first, deficiency) - lab(second, deficiency))
        assert distance >= 20, (a, b)


def test_series_differ_without_colour():
    markers, dashes = zip(*[(marker, dash) for _, marker, dash in draw.SERIES], strict=True)
    assert len(set(markers)) == len(set(dashes)) == len(draw.SERIES)


def picture(width=20, height=10):
    """An empty picture of `width` x `height` pixels, and its axes."""
    figure, axes = draw.figure(size=(6, 4))
    draw.image(axes, np.full((height, width, 3), 255, np.uint8), "empty")
    return figure, axes


def pixel(figure, axes, x, y):
    """The colour that is drawn at the point (x, y) of the data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=draw.DPI)
    rendered = np.asarray(Image.open(buffer).convert("RGB"))
    column, up = axes.transData.transform((x, y))
    return rendered[rendered.shape[0] - 1 - int(up), int(column)] / 255


def assert_colour(figure, axes, x, y, colour):
    assert np.abs(pixel(figure, axes, x, y) - to_rgb(colour)).max() < 0.1, (x, y)


def test_a_pixel_spans_its_index_to_the_next():
    values = np.zeros((10, 20))
    values[3, 7] = 1
    for helper in (draw.image, draw.cells):
        figure, axes = draw.figure(size=(6, 4))
        helper(axes, values, "one bright pixel")
        for x, y, bright in [(7.2, 3.2, 1), (7.8, 3.8, 1), (6.8, 3.5, 0), (7.5, 4.2, 0)]:
            assert pixel(figure, axes, x, y).mean() == pytest.approx(bright, abs=0.3)


def test_the_edge_of_a_box_lies_on_its_coordinates():
    figure, axes = picture()
    draw.box(axes, [2, 3, 15, 8], draw.USED)
    for x, y in [(2, 5), (15, 5), (9, 3), (9, 8)]:
        assert_colour(figure, axes, x, y, draw.USED)
    assert_colour(figure, axes, 9, 5, "white")


def test_bins_divide_a_box():
    figure, axes = picture()
    draw.box(axes, [2, 2, 14, 8], draw.USED, bins=3)
    assert pixel(figure, axes, 6, 3).mean() < 0.95
    assert pixel(figure, axes, 3.9, 6).mean() < 0.95
    assert_colour(figure, axes, 7.9, 5, "white")


def test_bins_of_whole_cells_lie_just_inside_them():
    _, axes = picture()
    draw.bins(axes, np.array([[2, 5]]), np.array([[3, 7], [6, 11]]))
    corners = [patch.get_bbox().extents.tolist() for patch in axes.patches]
    np.testing.assert_allclose(corners, [[3.1, 2.1, 6.9, 4.9], [6.1, 2.1, 10.9, 4.9]])


def test_many_boxes_lie_on_their_coordinates_and_the_heaviest_on_top():
    _, axes = picture()
    draw.boxes(axes, np.array([[2, 3, 15, 8], [4, 3, 9, 6]]), np.array([1.0, 0.5]))
    assert [(patch.get_bbox().extents.tolist(), patch.get_alpha()) for patch in axes.patches] == [
        ([4, 3, 9, 6], 0.5),
        ([2, 3, 15, 8], 1.0),
    ]


def test_every_cell_has_an_edge_whatever_ticks_there_are():
    figure, axes = draw.figure(size=(6, 4))
    draw.cells(axes, np.zeros((10, 20)), "black cells", limits=(0, 1))
    near = np.linspace(-0.05, 0.05, 5)
    for i in range(1, 10):
        assert max(pixel(figure, axes, i + 0.5, i + d).mean() for d in near) > 0.05
        assert max(pixel(figure, axes, i + d, i + 0.5).mean() for d in near) > 0.05


def test_values_are_written_into_the_middle_of_their_cells():
    _, axes = draw.figure(size=(4, 4))
    draw.cells(axes, np.array([[0.0, 0.25], [0.75, 0.0]]), "map", cmap=draw.MAGNITUDE)
    draw.write(axes, np.array([[0.0, 0.25], [0.75, 0.0]]))
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
        ("0.25", (1.5, 0.5)),
        ("0.75", (0.5, 1.5)),
    ]


def test_a_sample_at_index_i_lies_in_the_middle_of_pixel_i():
    figure, axes = picture()
    draw.samples(axes, np.array([4]), np.array([6]))
    assert_colour(figure, axes, 4.5, 6.5, draw.SAMPLE)


def test_an_outline_follows_the_edges_of_pixels():
    figure, axes = picture()
    mask = np.zeros((10, 20), bool)
    mask[2:5, 6:9] = True
    draw.outline(axes, mask)
    for x, y in [(6, 3.5), (9, 3.5), (7.5, 2), (7.5, 5)]:
        assert_colour(figure, axes, x, y, draw.USED)
    assert_colour(figure, axes, 7.5, 3.5, "white")


def test_an_outline_at_the_border_is_closed():
    figure, axes = picture()
    axes.set(xlim=(-1, 21), ylim=(11, -1))
    draw.outline(axes, np.ones((10, 20), bool))
    for x, y in [(0, 5), (20, 5), (10, 0), (10, 10)]:
        assert_colour(figure, axes, x, y, draw.USED)


def test_a_patch_fills_its_rectangle_whatever_the_order_of_its_corners():
    figure, axes = picture()
    draw.patch(axes, [12, 8, 4, 2], draw.GRADIENT, alpha=1)
    assert_colour(figure, axes, 4.2, 2.2, draw.GRADIENT)
    assert_colour(figure, axes, 11.8, 7.8, draw.GRADIENT)
    assert_colour(figure, axes, 3.8, 5, "white")


def test_numbers_stand_in_their_cells():
    _, axes = draw.figure(size=(4, 4))
    draw.numbers(axes, np.array([[0.0, 1.0], [2.0, 0.0]]), "matrix", zeros=False)
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [
        ("1", (1, 0)),
        ("2", (0, 1)),
    ]


def test_the_map_of_differences_is_white_at_zero():
    _, axes = draw.figure(size=(4, 4))
    drawn = draw.cells(axes, np.array([[-1.0, 0.0, 4.0]]), "signed", cmap=draw.SIGNED)
    assert drawn.get_clim() == (-4, 4)


def unnamed(axes):
    axes.set(xlabel="")


def untitled(axes):
    axes.set_title("", loc="left")


def tiny_text(axes):
    axes.text(1, 1, "tiny", fontsize=6)


@pytest.mark.parametrize("spoil", [unnamed, untitled, tiny_text])
def test_show_refuses_what_a_reader_cannot_read(spoil):
    figure, axes = picture()
    draw.check(figure, CAPTION)
    spoil(axes)
    with pytest.raises(AssertionError):
        draw.show(figure, CAPTION)


@pytest.mark.parametrize("caption", ["short", "long " * 100])
def test_show_refuses_a_caption_that_does_not_describe(caption):
    with pytest.raises(AssertionError, match="caption"):
        draw.show(picture()[0], caption)


def test_show_refuses_a_figure_wider_than_the_page():
    figure, axes = draw.figure(size=(12, 3))
    axes.set(title="wide", xlabel="x, pixels", ylabel="y, pixels")
    with pytest.raises(AssertionError, match="wide"):
        draw.show(figure, CAPTION)


def displayed(monkeypatch, function, *arguments):
    shown = []
    monkeypatch.setattr(draw, "display", lambda *items: shown.extend(items))
    function(*arguments)
    return shown


def test_show_displays_a_picture_and_its_caption(monkeypatch):
    image, caption = displayed(monkeypatch, draw.show, picture()[0], CAPTION)
    opened = Image.open(io.BytesIO(image.data))
    assert opened.size == (600, 400) and opened.mode == "P"
    assert caption.data == f"*{CAPTION}*"


def test_a_strip_fills_rows_of_the_page(monkeypatch):
    parts = [picture()[0] for _ in range(3)]
    image, _ = displayed(monkeypatch, draw.strip, parts, CAPTION)
    assert Image.open(io.BytesIO(image.data)).size == (600, 1200)


def test_tables_are_escaped(monkeypatch):
    [shown] = displayed(monkeypatch, draw.table, {"<b>": [1, "&"]}, ["name", "x", "y"])
    assert "<td>&lt;b&gt;</td><td>1</td><td>&amp;</td>" in shown.data


def with_docstring(x):
    """Say something."""
    return x + 1


def test_source_shows_the_code_as_it_stands(monkeypatch):
    [shown] = displayed(monkeypatch, draw.source, with_docstring)
    code = "def with_docstring(x):\n    return x + 1"
    assert shown.data == f"`{__name__.replace('.', '/')}.py`\n\n```python\n{code}\n```"


def test_a_slider_redraws_the_picture(monkeypatch):
    asked = []

    def at(shift):
        asked.append(shift)
        figure, axes = picture()
        draw.box(axes, [2 + shift, 3, 8 + shift, 8])
        return figure

    positions = [{"shift": shift} for shift in (0, 1, 2)]
    *_, live = displayed(
        monkeypatch, partial(draw.explore, shift=(-2, 4, 0.5)), at, CAPTION, positions
    )
    slider, drawn = live.children
    before = drawn.value
    slider.value = 3.5
    assert asked == [0, 1, 2, 0, 3.5]
    assert drawn.value != before


def test_many_boxes_are_thin_and_the_heaviest_lies_on_top():
    figure, axes = picture()
    draw.boxes(axes, np.array([[2.0, 3, 15, 8], [2, 3, 15, 8]]), np.array([1.0, 0.1]), draw.USED)
    for x, y in [(2, 5), (15, 5), (9, 3), (9, 8)]:
        assert pixel(figure, axes, x, y)[2] < 0.9
    assert_colour(figure, axes, 9, 5, "white")
    assert [box.get_alpha() for box in axes.patches] == [0.1, 1.0]


def test_a_sheet_places_its_maps_row_by_row():
    figure, axes = draw.figure(size=(6, 4))
    dark_right = np.array([[1.0, 0.0]])
    draw.sheet(axes, [dark_right, dark_right, dark_right], 2, cmap=draw.BRIGHTNESS)
    for x, y, bright in [(0.2, 0.5, 1), (0.8, 0.5, 0), (1.3, 0.5, 1), (0.8, 1.5, 0), (1.9, 1.6, 1)]:
        assert pixel(figure, axes, x, y).mean() == pytest.approx(bright, abs=0.1)


def test_a_river_runs_through_its_stations_and_points_onwards():
    figure, axes = draw.figure(2, 2, size=(6, 4))
    for panel in axes.flat:
        panel.set(title="station", xticks=[], yticks=[])
    draw.river(figure, [axes[0, 0], axes[0, 1], axes[1, 1], axes[1, 0]])
    water, *arrows = [x for x in figure.get_children() if isinstance(x, Line2D)]
    assert [arrow.get_marker() for arrow in arrows] == [">", "v", "<"]
    place = axes[0, 0].get_position()
    assert water.get_xdata()[0] == pytest.approx((place.x0 + place.x1) / 2)
    assert max(water.get_xdata()) > axes[0, 1].get_position().x1


def test_marked_bars_show_their_hatch():
    figure, axes = draw.figure(size=(4, 2))
    draw.bars(axes, {"one": 1, "two": 2}, "bars", unit="no unit", marked=["two"])
    row = [pixel(figure, axes, x, 1).mean() for x in np.linspace(0.1, 1.9, 40)]
    assert max(row) - min(row) > 0.3


def test_an_excerpt_has_whole_lines(monkeypatch):
    shown = []
    monkeypatch.setattr(draw, "display", lambda *outputs: shown.extend(outputs))
    draw.excerpt(draw, "made = Figure(", "return made, made.subplots")
    code = 'made = Figure(figsize=size, dpi=DPI, layout="constrained")\nreturn made, made.subplots('
    assert shown[0].data.startswith(f"`figures.py`\n\n```python\n{code}")
    with pytest.raises(ValueError):
        draw.excerpt(draw, "return made, made.subplots", "import html")
