"""The playground: its arithmetic is the oracle's, and mouse, finger and keys move its box."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from reference import roi_align, roi_pool, roi_warp
from tests.support.browser import chromium

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "notebooks" / "playground.html"
SOURCES = ROOT / "notebooks" / "playground"
BUILD = runpy.run_path(str(SOURCES / "build.py"))
BOXES = 300
VARIANTS = [
    ("roi_pool", "max"),
    ("roi_warp", "mean"),
    ("roi_warp", "max"),
    ("roi_align", "mean"),
    ("roi_align", "max"),
]
MODULES = {"roi_pool": roi_pool, "roi_warp": roi_warp, "roi_align": roi_align}
# What the page does with a case: the operator, then the gradient.
RUN = """
(text) => JSON.stringify(JSON.parse(text).map(({ op, features, box, options, gradOut }) => {
  const pooled = OPERATORS[op](features, box, options);
  return [pooled.out, backward(pooled, features, gradOut)];
}))
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Window:
    """The page in a window of its own, with everything it requested and complained about."""

    def __init__(self, browser, address="", **options):
        self.context = browser.new_context(**{"viewport": {"width": 1060, "height": 800}} | options)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(PAGE.as_uri() + address)


@pytest.fixture
def open_page(browser):
    """open_page(address, **options) -> a page; at the end none has complained or requested."""
    windows = []

    def open_page(address="", **options):
        windows.append(Window(browser, address, **options))
        return windows[-1].page

    yield open_page
    for window in windows:
        window.context.close()
    for window in windows:
        assert window.complaints == []
        assert [url for url in window.requests if not url.startswith("data:")] == [
            window.requests[0]
        ]
        assert window.requests[0].startswith("file:")


@pytest.fixture
def page(open_page):
    return open_page()


# The page as a whole.


def test_the_page_is_what_build_makes():
    assert PAGE.read_text() == BUILD["page"]()


def test_the_page_is_small():
    assert PAGE.stat().st_size < 100_000


def test_sources_have_lines_to_read():
    for path in [*SOURCES.glob("*.js"), *SOURCES.glob("*.css"), *SOURCES.glob("*.html")]:
        assert max(map(len, path.read_text().splitlines())) <= 100, path.name


# The arithmetic.


def keywords(op, options):
    """The arguments of the oracle's operator, from those of the page's."""
    given = {"output_size": options["outputSize"], "spatial_scale": options["spatialScale"]}
    if op != "roi_pool":
        given |= {
            "sampling_ratio": options["samplingRatio"],
            "aggregate": options["aggregate"],
        }
    if op == "roi_align":
        given["aligned"] = options["aligned"]
    return given


def pool(op, features, rois, options):
    """The oracle's output [R, 1, P, P] for features [H, W], or for one map an RoI [R, 1, H, W]."""
    maps = features.reshape(-1, 1, *features.shape[-2:])
    image_index = np.arange(len(rois)) % len(maps)
    return getattr(MODULES[op], op)(maps, rois, image_index, **keywords(op, options))


def oracle(case):
    """The output and the gradient of a case."""
    op, features = case["op"], np.array(case["features"])
    rois = np.array([case["box"]])
    grad = getattr(MODULES[op], f"{op}_backward")(
        np.array(case["gradOut"])[None, None],
        features[None, None],
        rois,
        np.array([0]),
        **keywords(op, case["options"]),
    )
    return pool(op, features, rois, case["options"])[0, 0], grad[0, 0]


def random_box(g, n, height, width, scale):
    """A box around the map: n decides whether it lies on halves, is inverted, or is outside."""
    corners = np.sort(g.uniform(-0.4, 1.4, (2, 2)), axis=0) * (width, height)
    if n % 7 == 1:
        # To the left of the map or above it, by no more than a few pixels.
        corners -= (corners.max(axis=0) + g.uniform(-2, 2)) * [(1, 0), (0, 1)][n % 2]
    if n % 4 == 2:
        corners = np.round(corners * 2) / 2
    if n % 11 == 3:
        corners[:, n % 2] = corners[::-1, n % 2]
    return (corners / scale).ravel()


def make_cases(count):
    """`count` boxes, each through every operator."""
    g = np.random.default_rng(0)
    made = []
    for n in range(count):
        height, width = (int(size) for size in g.integers(1, 20, 2))
        bins, scale = int(g.integers(1, 8)), float(g.choice([1, 1 / 4, 1 / 8, 1 / 16]))
        box = random_box(g, n, height, width, scale)
        features = g.standard_normal((height, width))
        options = {
            "outputSize": bins,
            "spatialScale": scale,
            "samplingRatio": n % 5,
            "aligned": bool(g.integers(2)),
        }
        grad_out = g.standard_normal((bins, bins)).tolist()
        for op, aggregate in VARIANTS:
            # Many equal features: the first of the largest counts.
            x = features.round() if op == "roi_pool" and n % 3 == 0 else features
            made.append(
                {
                    "op": op,
                    "features": x.tolist(),
                    "box": box.tolist(),
                    "options": options | {"aggregate": aggregate},
                    "gradOut": grad_out,
                }
            )
    return made


@pytest.fixture(scope="module")
def cases():
    return [(case, *oracle(case)) for case in make_cases(BOXES)]


def largest_errors(cases, answer):
    """{(operator, aggregate): the largest error of output and gradient} of the page's `answer`."""
    errors = {}
    for (case, *expected), results in zip(cases, json.loads(answer), strict=True):
        key = case["op"], case["options"]["aggregate"]
        for ours, theirs in zip(results, expected, strict=True):
            # JSON has no NaN: null.
            error = np.abs(np.array(ours, float) - theirs).max()
            errors[key] = max(errors.get(key, 0), np.inf if np.isnan(error) else error)
    return errors


def ask(page, cases, script=RUN):
    return largest_errors(cases, page.evaluate(script, json.dumps([case for case, *_ in cases])))


def test_the_cases_are_worth_it(cases):
    """Boxes on halves, inverted, beside the map and adaptive sampling are all among them."""
    boxes = np.array([case["box"] for case, *_ in cases])
    scale = np.array([case["options"]["spatialScale"] for case, *_ in cases])
    ratios = {case["options"]["samplingRatio"] for case, *_ in cases}
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    on_halves = ((boxes * scale[:, None]) % 1 == 0.5).any(axis=1)
    outside = (boxes[:, 2:] < 0).any(axis=1)
    assert ratios == {0, 1, 2, 3, 4}
    assert min(inverted.sum(), on_halves.sum(), outside.sum()) >= 20 * len(VARIANTS)


def test_the_page_computes_what_the_oracle_computes(page, cases):
    errors = ask(page, cases)
    assert len(errors) == len(VARIANTS) and max(errors.values()) < 1e-12, errors


HALF_TO_EVEN = "Math.abs(value - whole) > 0.5 || Math.abs(value % 2) === 1.5 ? 1 : 0"
# What must be noticed: a line of operators.js, and what replaces it.
MUTANTS = [
    ("Math.abs(value - whole) >= 0.5", "Math.abs(value - whole) > 0.5"),
    ("Math.abs(value - whole) >= 0.5 ? 1 : 0", HALF_TO_EVEN),
    ("position >= -1 && position <= size", "true"),
    ("position >= -1 &&", "position >= 0 &&"),
    ("position >= -1 &&", "position > -1 &&"),
    ("position <= size", "position < size"),
    ("aligned ? low - 0.5 : low", "low"),
    ("if (!aligned) length = Math.max(length, 1);", ""),
    ("if (aligned && high < low) count = 0;", ""),
    ("Math.ceil(side)", "Math.floor(side)"),
    ("(i + 0.5) * side", "i * side"),
    ("weights[lower] += 1 - (nearest - lower)", "weights[lower] += nearest - lower"),
    (" / Math.max(bin.length, 1)", ""),
    ("value > best.value", "value >= best.value"),
    ("Math.max(x2, x1) + 1", "Math.max(x2, x1 + 1)"),
    ("spatialScale: 1, aligned: false", "spatialScale: 1, aligned: true"),
    ("Math.ceil((p + 1) * side)", "Math.floor((p + 1) * side)"),
    ("weight * g", "weight"),
]


@pytest.fixture(scope="module")
def blank_page(browser):
    return browser.new_page()


@pytest.mark.parametrize(("old", "new"), MUTANTS)
def test_a_mistake_in_the_arithmetic_is_noticed(blank_page, cases, old, new):
    source = (SOURCES / "operators.js").read_text()
    assert source.count(old) == 1, "this mutant has rotted"
    script = f"(text) => {{ {source.replace(old, new)}\n return ({RUN})(text); }}"
    # A third of the boxes is enough, and quicker.
    errors = ask(blank_page, cases[: len(cases) // 3], script)
    assert max(errors.values()) > 1e-3


# What the page shows.

FEATURES = BUILD["features"]()
BIN = re.compile(r"Bin \[(\d), (\d)\]")
STATES = [
    "#box=77,45,122,91&op=roi_pool&bin=0,2",
    "#box=-11.5,-10,40,60.25&op=roi_pool&bin=1,0",
    "#box=77,45,122,91&op=roi_warp&aggregate=mean&samplingRatio=3&bin=2,2",
    "#box=60,52,130,140&op=roi_warp&aggregate=max&samplingRatio=0",
    "#box=77.375,45,122,91&op=roi_align&aggregate=mean&samplingRatio=0&bin=2,0",
    "#box=-12,-12,33.125,70&op=roi_align&aggregate=mean&samplingRatio=4&aligned=false&bin=0,0",
    "#box=10,20,90,61&op=roi_align&aggregate=max&samplingRatio=2&bin=0,1",
    "#box=100,100,104,104&op=roi_align&aggregate=max&samplingRatio=1&aligned=false",
]


def shown(page):
    """The numbers of the table, as exact as the page knows them [3, 3]."""
    values = page.eval_on_selector_all("#output button", "nodes => nodes.map(n => n.value)")
    return np.array(values, float).reshape(3, 3)


def run_python(page, monkeypatch):
    """The names that the code beside "Copy as Python" leaves behind."""
    monkeypatch.chdir(ROOT)
    names = {}
    exec(page.inner_text("#python"), names)
    return names


def chosen(page):
    label = page.get_attribute("#output button[aria-pressed=true]", "aria-label")
    return tuple(map(int, BIN.match(label).groups()))


def state(page):
    return page.evaluate("state")


def places_of(array):
    """The places {(row, column)} where an array is not zero."""
    return set(map(tuple, np.argwhere(array).tolist()))


def case_of(page, **changes):
    """The case, as `oracle` takes it, that the page shows."""
    now = state(page) | changes
    options = {name: now[name] for name in ("aggregate", "samplingRatio", "aligned")}
    grad_out = np.zeros((3, 3))
    grad_out[tuple(now["bin"])] = 1
    return {
        "op": now["op"],
        "features": FEATURES,
        "box": np.array(now["box"], float),
        "options": options | {"outputSize": 3, "spatialScale": 1 / 8},
        "gradOut": grad_out,
    }


@pytest.mark.parametrize("address", STATES)
def test_the_python_code_gives_the_numbers_of_the_table(open_page, monkeypatch, address):
    page = open_page(address)
    out = run_python(page, monkeypatch)["out"][0, 0]
    np.testing.assert_allclose(shown(page), out, rtol=0, atol=1e-12)
    written = page.eval_on_selector_all("#output button", "nodes => nodes.map(n => n.innerText)")
    assert np.abs(np.array(written, float).reshape(3, 3) - out).max() <= 0.05 + 1e-9


def test_the_python_code_says_what_was_chosen(open_page, monkeypatch):
    page = open_page(STATES[5])
    names = run_python(page, monkeypatch)
    assert names["rois"].tolist() == [[-12.0, -12.0, 33.125, 70.0]]
    code = page.inner_text("#python")
    for argument in ("sampling_ratio=4", "aligned=False", 'aggregate="mean"', "roi_align("):
        assert argument in code
    assert np.array_equal(names["features"][0, 0], FEATURES)


@pytest.mark.parametrize("address", STATES)
def test_the_map_shows_what_the_chosen_bin_reads_and_its_gradient(open_page, address):
    page = open_page(address)
    _, gradient = oracle(case_of(page))
    places = page.eval_on_selector_all(
        "#map .weight",
        "nodes => nodes.map(n => [n.getAttribute('y'), n.getAttribute('x')])",
    )
    assert {tuple(map(int, place)) for place in places} == places_of(gradient)
    numbers = page.eval_on_selector_all("#map .number", "nodes => nodes.map(n => n.textContent)")
    expected = gradient[gradient >= 0.005]
    assert np.abs(np.array(numbers, float) - expected).max(initial=0) <= 0.005 + 1e-9
    assert f"weights add to {gradient.sum():.6f}" in page.inner_text("#summary")

    # A NaN in one of the cells that the bin reads, and in no other, reaches the bin.
    case = case_of(page)
    poisoned = np.repeat(FEATURES.reshape(1, 256), 256, axis=0)
    np.fill_diagonal(poisoned, np.nan)
    rois = np.repeat(case["box"][None], 256, axis=0)
    out = pool(case["op"], poisoned.reshape(256, 1, 16, 16), rois, case["options"])
    reads = np.isnan(out[:, 0, *chosen(page)]).reshape(16, 16)
    places = page.eval_on_selector_all(
        "#map .read", "nodes => nodes.map(n => [n.getAttribute('y'), n.getAttribute('x')])"
    )
    assert {tuple(map(int, place)) for place in places} == places_of(reads)
    count = re.search(r"(\d+) cells?\b", page.inner_text("#summary"))
    assert (int(count[1]) if count else 0) == reads.sum()


def numbers_of(page, selector, *names):
    """The attributes `names` of every element, as numbers [count, len(names)]."""
    values = page.eval_on_selector_all(
        selector, "(nodes, names) => nodes.map(n => names.map(m => n.getAttribute(m)))", names
    )
    return np.array(values, float).reshape(-1, len(names))


def test_the_map_shows_boxes_and_samples_where_they_are(open_page):
    """In feature pixels, cell i from i to i + 1; the centre of pixel i lies at i + 0.5."""
    page = open_page("#box=77,45,122,91&op=roi_align&bin=0,0")
    asked = np.array([77, 45, 45, 46]) / 8
    for name in ("asked", "used", "casing", "box"):
        for drawn in numbers_of(page, f"#map .{name}", "x", "y", "width", "height"):
            np.testing.assert_array_equal(drawn, asked)
    paths = page.eval_on_selector_all("#map .bins", "ns => ns.map(n => n.getAttribute('d'))")
    lines = [[float(number) for number in re.findall(r"[-\d.]+", path)] for path in paths]
    x, y, width, height = asked
    expected = [
        (x + part * width, y, y + height, x, y + part * height, x + width)
        for part in (1 / 3, 2 / 3)
    ]
    np.testing.assert_allclose(lines, expected, atol=1e-12)
    samples = numbers_of(page, "#map .sample", "cx", "cy")
    for axis, (low, high) in enumerate([(77, 122), (45, 91)]):
        positions = roi_align.sample_positions(low / 8, high / 8, 3, 2, True)
        np.testing.assert_allclose(np.unique(samples[:, axis]), positions.ravel() + 0.5, atol=1e-12)
    assert len(samples) == 36
    large = numbers_of(page, "#map .sample:not(.other)", "cx", "cy")
    assert (large < asked[:2] + asked[2:] / 3).all() and len(large) == 4
    # The left edge of the box is where it should be on the screen, too.
    frame = page.locator("#map").bounding_box()
    edge = page.locator("#map .box").bounding_box()["x"]
    assert abs(edge - frame["x"] - frame["width"] * (1.5 + 77 / 8) / 19) < 0.5


def test_the_map_shows_which_samples_are_outside(open_page):
    page = open_page("#box=-12,-10,40,60&bin=0,0")
    outside = numbers_of(page, "#map .sample.outside", "cx", "cy")
    inside = numbers_of(page, "#map .sample:not(.outside)", "cx", "cy")
    # More than one pixel from the first centre, at 0.5.
    assert len(outside) and (outside.min(axis=1) < -0.5).all()
    assert (inside >= -0.5).all()
    assert "so counted as 0: 3." in page.inner_text("#summary")


def test_the_map_shows_the_rounded_box_and_the_rounded_bins(open_page):
    page = open_page("#box=60,44,108,92&op=roi_pool")
    x1, y1, x2, y2 = roi_pool.whole_pixels(np.array([[60.0, 44, 108, 92]]), 1 / 8)[0]
    assert (x1, y1, x2, y2) == (8, 6, 15, 13)
    used = numbers_of(page, "#map .used", "x", "y", "width", "height")
    assert used.tolist() == [[x1, y1, x2 - x1, y2 - y1]]
    # Seven cells in three bins, which overlap by a cell.
    edges = [(0, 3), (2, 5), (4, 7)]
    expected = [
        (x1 + x, y1 + y, x1 + x_end, y1 + y_end) for y, y_end in edges for x, x_end in edges
    ]
    bins = numbers_of(page, "#map .bins", "x", "y", "width", "height")
    bins[:, 2:] += bins[:, :2]
    assert np.abs(bins - expected).max() < 0.1


@pytest.mark.parametrize("address", STATES[:7])
def test_the_curve_is_the_change_of_the_chosen_bin(open_page, address):
    page = open_page(address)
    case, bin_ = case_of(page), chosen(page)
    x1 = case["box"][0]
    start = 2 * np.floor(x1 / 16)
    moved = case["box"] + np.outer(8 * (start + np.linspace(0, 2, 129)) - x1, [1, 0, 1, 0])
    drawn, expected = [], []
    for op in MODULES:
        points = page.get_attribute(f"#curve polyline.{op}", "points").split()
        drawn.append(np.array([point.split(",") for point in points], float))
        outputs = pool(op, FEATURES, moved, case["options"])[:, 0, *bin_]
        expected.append(outputs - outputs[0])
    drawn, expected = np.array(drawn), np.array(expected)
    # The height on the screen is one linear function of the change, for all three operators.
    height, change = drawn[..., 1].ravel(), expected.ravel()
    slope, level = np.polyfit(change, height, 1)
    np.testing.assert_allclose(height, slope * change + level, atol=1e-8)
    assert slope < 0
    left, right = drawn[0, [0, -1], 0]
    np.testing.assert_allclose(drawn[..., 0], [np.linspace(left, right, 129)] * 3, atol=1e-8)
    dot = numbers_of(page, "#curve .here-dot", "cx", "cy")[0]
    first = pool(case["op"], FEATURES, moved[:1], case["options"])[0, 0, *bin_]
    there = (
        left + (right - left) * (x1 / 8 - start) / 2,
        slope * (shown(page)[bin_] - first) + level,
    )
    np.testing.assert_allclose(dot, there, atol=1e-8)


# Using it.


def press_and_move(page, start, by):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + by[0], start[1] + by[1], steps=4)
    page.mouse.up()


def middle(box):
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def pixels(page, dx, dy):
    """A movement on the screen in image pixels, rounded to eighths."""
    scale = 19 * 8 / page.locator("#map").bounding_box()["width"]
    return np.round(np.array([dx, dy]) * scale * 8) / 8


def test_the_mouse_drags_the_box(page):
    before = np.array(state(page)["box"])
    press_and_move(page, middle(page.locator("#map .box").bounding_box()), (-60, 33))
    np.testing.assert_array_equal(state(page)["box"] - before, np.tile(pixels(page, -60, 33), 2))
    # Far to the right, the box stops.
    press_and_move(page, middle(page.locator("#map .box").bounding_box()), (900, 0))
    assert state(page)["box"][2] == 140 and state(page)["box"][0] == 140 - (122 - 77)


def test_the_mouse_drags_the_corner(page):
    before = np.array(state(page)["box"])
    press_and_move(page, middle(page.locator("#map .grip").bounding_box()), (-20, 11))
    expected = np.concatenate([[0, 0], pixels(page, -20, 11)])
    np.testing.assert_array_equal(state(page)["box"] - before, expected)
    press_and_move(page, middle(page.locator("#map .grip").bounding_box()), (-700, -700))
    assert state(page)["box"] == [77, 45, 81, 49]
    # The box is now small, and can still be taken by its middle.
    press_and_move(page, middle(page.locator("#map .box").bounding_box()), (-50, -50))
    moved = np.array(state(page)["box"]) - [77, 45, 81, 49]
    np.testing.assert_array_equal(moved, np.tile(pixels(page, -50, -50), 2))


def test_a_finger_drags_the_box_and_taps_a_bin(open_page):
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 400, "height": 800})
    before = np.array(state(page)["box"])
    x, y = middle(page.locator("#map .box").bounding_box())
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        points = [{"x": x, "y": y} for x, y in points]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", (x, y))
    for step in range(1, 5):
        send("touchMove", (x - 15 * step, y + 10 * step))
    send("touchEnd")
    np.testing.assert_array_equal(state(page)["box"] - before, np.tile(pixels(page, -60, 40), 2))
    assert page.evaluate("scrollY") == 0
    frame = page.locator("#map .box").bounding_box()
    page.touchscreen.tap(frame["x"] + 5, frame["y"] + frame["height"] / 2)
    assert chosen(page) == (1, 0)


def test_keys_move_the_box_and_its_corner(page):
    page.locator("#map .box").focus()
    for key, expected in {
        "ArrowRight": [78, 45, 123, 91],
        "ArrowUp": [78, 44, 123, 90],
        "Shift+ArrowLeft": [70, 44, 115, 90],
        "Alt+ArrowDown": [70, 44, 115, 91],
        "Alt+Shift+ArrowLeft": [70, 44, 107, 91],
        "Shift+ArrowDown": [70, 52, 107, 99],
    }.items():
        page.keyboard.press(key)
        assert state(page)["box"] == expected, key
    assert "x from 8.750 to 13.375, y from 6.500 to 12.375" in page.inner_text("#summary")


def test_keys_choose_a_bin(page):
    page.locator("#output button").first.focus()
    page.keyboard.press("Enter")
    assert chosen(page) == (0, 0)
    page.keyboard.press("Tab")
    assert chosen(page) == (0, 0)
    page.keyboard.press("Enter")
    assert chosen(page) == (0, 1)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert chosen(page) == (1, 2)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Bin [1, 2]"
    )


def test_a_click_on_the_map_chooses_a_bin(page):
    frame = page.locator("#map .box").bounding_box()
    page.mouse.click(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.9 * frame["height"])
    assert chosen(page) == (2, 1)
    assert state(page)["box"] == [77, 45, 122, 91]


def test_controls_change_what_they_say(page, monkeypatch):
    def check(**expected):
        assert {name: state(page)[name] for name in expected} == expected
        out = run_python(page, monkeypatch)["out"][0, 0]
        np.testing.assert_allclose(shown(page), out, rtol=0, atol=1e-12)

    page.uncheck("#aligned")
    check(aligned=False)
    page.select_option("#samplingRatio", "0")
    check(samplingRatio=0)
    page.select_option("#aggregate", "max")
    check(aggregate="max")
    page.check("[value=roi_warp]")
    check(op="roi_warp")
    assert page.is_disabled("#aligned") and page.is_enabled("#samplingRatio")
    page.check("[value=roi_pool]")
    check(op="roi_pool")
    assert page.is_disabled("#aggregate") and page.is_disabled("#samplingRatio")
    photograph = page.locator("#map image")
    assert not photograph.is_visible()
    page.check("#photograph")
    assert photograph.is_visible()


def test_the_address_carries_the_state(open_page):
    page = open_page()
    pages = page.evaluate("history.length")
    page.locator("#map .box").focus()
    page.keyboard.press("ArrowRight")
    page.select_option("#samplingRatio", "4")
    page.select_option("#aggregate", "max")
    page.uncheck("#aligned")
    page.check("#photograph")
    page.locator("#output button").nth(5).click()
    page.check("[value=roi_warp]")
    page.wait_for_url("**#*roi_warp*")
    # "Back" leaves the page, and does not undo a movement.
    assert page.evaluate("history.length") == pages
    again = open_page("#" + page.url.split("#")[1])
    assert state(again) == state(page) != page.evaluate("DEFAULTS")
    assert again.inner_text("#python") == page.inner_text("#python")
    assert again.is_checked("#photograph") and again.is_checked("[value=roi_warp]")
    # The same page follows a link, too.
    page.evaluate("location.hash = 'op=roi_pool'")
    page.wait_for_function("state.op === 'roi_pool'")
    assert state(page) == page.evaluate("DEFAULTS") | {"op": "roi_pool"}


def test_nonsense_in_the_address_is_ignored(open_page):
    page = open_page(
        "#box=1,2,3&op=toString&aggregate=sum&samplingRatio=9&aligned=perhaps&bin=0.5,7&x=%"
    )
    assert state(page) == page.evaluate("DEFAULTS") | {"aligned": False}
    for box in ("9,9,5,20", "0,0,1e9,40", "a,b,c,d", ""):
        page.evaluate("box => { location.hash = `box=${box}&bin=2,2`; }", box)
        page.wait_for_function("String(state.bin) === '2,2'")
        assert state(page)["box"] == page.evaluate("DEFAULTS.box")
        page.evaluate("change({ bin: [0, 0] })")


def test_the_code_is_copied(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.wait_for_function("document.getElementById('copied').textContent")
    assert page.inner_text("#copied") == "Copied."
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.text_content("#python")


def test_where_copying_is_refused_the_code_is_selected(page):
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject('no'); }")
    page.click("#copy")
    page.wait_for_function("document.getElementById('copied').textContent")
    assert "selected" in page.inner_text("#copied")
    assert page.evaluate("String(getSelection())").strip() == page.text_content("#python").strip()


# Looks.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1060])
def test_nothing_is_wider_than_the_window(open_page, width, scheme):
    # This box is drawn as far beyond the picture as any.
    page = open_page(
        "#box=-12,-12,140,140&op=roi_warp",
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # On a phone, the map and the curve below it are seen together while the box is dragged.
    map_, curve = (page.locator(name).bounding_box() for name in ("#map", "#curve"))
    assert curve["y"] + curve["height"] - map_["y"] <= 800


@pytest.mark.parametrize(
    ("scheme", "ink"), [("light", "rgb(0, 0, 0)"), ("dark", "rgb(255, 255, 255)")]
)
def test_roles_have_their_colours_and_a_second_mark(open_page, scheme, ink):
    page = open_page(color_scheme=scheme)

    def style(selector, name):
        return page.eval_on_selector(selector, f"node => getComputedStyle(node)['{name}']")

    assert style("#map .asked", "stroke") == ink
    assert style("#map .asked", "stroke-dasharray") != "none"
    assert style("#map .used", "stroke") == "rgb(213, 94, 0)"
    assert style("#map .used", "stroke-dasharray") == "none"
    assert style("#map .sample", "fill") == "rgb(0, 102, 168)"
    assert style("#map .weight", "fill") == "rgb(0, 158, 115)"
    dashes = {style(f"#curve polyline.{op}", "stroke-dasharray") for op in MODULES}
    assert len(dashes) == 3


def test_the_summary_is_read_aloud(page):
    assert page.get_attribute("#summary", "aria-live") == "polite"
    before = page.inner_text("#summary")
    page.locator("#map .box").focus()
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#summary") != before
