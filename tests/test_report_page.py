"""The page of a report shows the numbers that it is given, and asks for nothing from outside."""

import json
import re
from html.parser import HTMLParser

import pytest
from support import report_content
from support.browser import chromium

from accelerated.analysis.page import FOLDER, METRICS, render

VOID = {"meta", "link", "img", "br", "input"}
# Elements whose end may be left out.
OPEN = {"td"}


class Page(HTMLParser):
    """The tables of a page, as texts, with its elements and their attributes."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.tables, self.data, self.texts = [], [], "", []
        self.stack = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append((dict(attributes).get("class", ""), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_endtag(self, tag):
        while self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        inside = [tag for tag, _ in self.stack]
        if ("script", {"type": "application/json", "id": "data"}) in self.stack:
            self.data += data
        elif "small" not in inside and {"td", "th"} & set(inside):
            self.tables[-1][1][-1][-1] += data
        if not {"script", "style"} & set(inside):
            self.texts.append(data)

    def rows(self, kind, number=0):
        """The rows of a table, stripped texts, by a word of its class."""
        found = [rows for classes, rows in self.tables if kind in classes.split()]
        return [[" ".join(cell.split()) for cell in row] for row in found[number]]

    def text(self):
        return " ".join(" ".join(self.texts).split())


def shown(value):
    return "–" if value is None else f"{value:.3f}"


@pytest.fixture(scope="module")
def single():
    content = report_content.content(1, 6)
    return content, Page(render(content))


@pytest.fixture(scope="module")
def several():
    content = report_content.content(3, 3)
    return content, Page(render(content))


def test_the_overview_is_that_of_the_content(single):
    content, page = single
    metrics = content["runs"][0]["evaluation"]["metrics"]
    branches = {"Masks": "segm", "Boxes": "bbox", "Boundaries": "boundary"}
    rows = page.rows("numbers")[1:]
    assert [row[0] for row in rows] == list(branches)
    for name, *cells in rows:
        assert cells == [shown(metrics[branches[name]].get(key)) for key in METRICS]
    facts = page.rows("facts")[1]
    evaluation = content["runs"][0]["evaluation"]
    keys = ("data", "iteration", "images", "objects", "crowds", "detections")
    assert facts == [*(str(evaluation[key]) for key in keys), "masks, IoU 0.5"]


def test_each_class_has_its_numbers(single):
    content, page = single
    for entry, row in zip(
        content["runs"][0]["evaluation"]["classes"], page.rows("by-class")[1:], strict=True
    ):
        rates = ["mask_AP", "box_AP", "boundary_AP", "AP50"]
        rates += ["best_threshold", "best_F1", "precision", "recall"]
        counts = [str(entry["objects"]), str(entry["detections"])]
        assert row == [entry["name"], *counts, *(shown(entry[key]) for key in rates)]


def test_the_matrix_has_its_counts(single):
    content, page = single
    confusion = content["runs"][0]["evaluation"]["confusion"]
    header, *rows = page.rows("matrix")
    assert header == ["", *confusion["labels"][:-1], "missed"]
    for label, counts, row in zip(confusion["labels"], confusion["matrix"], rows, strict=True):
        assert row == [label, *(str(count) if count else "" for count in counts)]


def test_kinds_of_errors_stand_by_what_they_cost(single):
    content, page = single
    errors = content["runs"][0]["evaluation"]["errors"]
    kinds = sorted(errors["kinds"], key=lambda entry: -entry["cost"])
    rows = page.rows("numbers", 2)[1:]
    assert [row[1:] for row in rows[:6]] == [[shown(e["cost"]), str(e["count"])] for e in kinds]
    sums = [errors["false_positives"], errors["false_negatives"]]
    assert [row[1] for row in rows[6:]] == [shown(cost) for cost in sums]
    assert f"{rows[0][0]} cost {kinds[0]['cost']:.3f} of AP50, more than any other" in page.text()


def test_runs_are_compared_with_the_first(several):
    content, page = several
    evaluations = [run["evaluation"] for run in content["runs"]]
    header, *rows = page.rows("sortable")
    names = [run["name"] for run in content["runs"]]
    assert header[2:] == [
        names[0],
        *(n for name in names[1:] for n in (name, f"{name}: difference")),
    ]
    for k, (_, objects, first, *cells) in enumerate(rows):
        entries = [evaluation["classes"][k] for evaluation in evaluations]
        assert (objects, first) == (str(entries[0]["objects"]), shown(entries[0]["mask_AP"]))
        for entry, value, difference in zip(entries[1:], cells[::2], cells[1::2], strict=True):
            assert value == shown(entry["mask_AP"])
            expected = f"{entry['mask_AP'] - entries[0]['mask_AP']:+.3f}".replace("-", "−")
            assert difference == expected
    assert (
        "runs/long2 has the highest AP of masks: 0.450, 0.070 more than runs/mine." in page.text()
    )


def test_what_is_missing_is_said():
    run = report_content.content(1, 2, evaluation=False)
    text = Page(render(run)).text()
    assert "The run has no evaluation yet." in text and "Confusion" not in text
    text = Page(render(report_content.content(1, 2, log=False))).text()
    assert "The run has no log of its training." in text and "Learning rate" not in text
    both = report_content.content(2, 2)
    both["runs"][1]["evaluation"] = None
    both |= {"notes": ["A remark on both."]}
    both["runs"][0] |= {"assumed": "the evaluation of step 7"}
    text = Page(render(both)).text()
    assert f"{both['runs'][1]['name']} has no evaluation yet." in text
    assert "A remark on both." in text and "The evaluation of step 7." in text


def test_an_evaluation_of_nothing_has_a_page():
    content = report_content.content(1, 2, pictures=0)
    evaluation = content["runs"][0]["evaluation"]
    none = dict.fromkeys(METRICS) | {"classes": {}}
    evaluation |= {"kind": "bbox", "metrics": {"bbox": none, "boundary": None}}
    for entry in evaluation["classes"]:
        entry |= dict.fromkeys(key for key in entry if key not in ("id", "name", "objects"))
        entry |= {"objects": 0, "detections": 0}
    for curve in evaluation["curves"]:
        curve |= {"precision50": [None] * 101, "precision75": None, "precision": [None] * 19}
    for name in ("sizes", "scores"):
        evaluation[name] = {key: [] for key in evaluation[name]}
    evaluation["calibration"] = {"bins": [], "ece": None}
    evaluation["confusion"]["matrix"] = [[0] * 3] * 3
    for entry in evaluation["errors"]["kinds"]:
        entry |= {"count": 0, "cost": None}
    evaluation["errors"] |= dict.fromkeys(("AP50", "false_positives", "false_negatives"))
    page = Page(render(content))
    assert page.rows("numbers")[1] == ["Boxes", *["–"] * 6]
    assert "0 of 0 objects are found, and 0 detections are wrong." in page.text()
    assert not [attributes for tag, attributes in page.elements if tag == "img"]


def test_names_are_texts_whatever_they_hold(single):
    bad = ["</script><script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "<!--{{ 7 }}"]
    content = report_content.content(2, 3, names=bad)
    for run, name in zip(content["runs"], bad, strict=False):
        run["name"] = name
        run["evaluation"]["data"] = bad[2]
        for picture in run["evaluation"]["pictures"]:
            picture["file_name"] = bad[0]
    harmless = report_content.content(2, 3)
    page, other = Page(render(content | {"title": bad[0]})), Page(render(harmless))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in other.elements]
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    data = json.loads(page.data)
    assert set(data["paths"]) == {"", *bad}
    assert {name for entry in data["pictures"][0] for name in entry["classes"]} <= set(bad)
    assert [row[0] for row in page.rows("sortable")[1:]] == bad


def test_nothing_is_loaded(several):
    _, page = several
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    files = [path.read_text() for path in (*FOLDER.glob("*.css"), *FOLDER.glob("*.js"))]
    assert len(files) == 3 and not re.search(r"https?:|url\(|@import|fetch\(", "".join(files))
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy


def test_tables_and_charts_speak_to_those_who_do_not_see_them(several):
    _, page = several
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    charts = [a for tag, a in page.elements if tag == "svg" and "chart" in a["class"]]
    assert len(charts) > 10 and all(
        a["role"] == "img" and len(a["aria-label"]) > 20 for a in charts
    )
    # The enlarged picture gets its text with its source.
    images = [a for tag, a in page.elements if tag == "img" and "src" in a]
    assert len(images) == 36 and all(re.search(r"\d (objects|found)", a["alt"]) for a in images)


def test_five_runs_of_eighty_classes_are_below_3_mb():
    content = report_content.content(5, 80, pictures=0)
    assert len(render(content).encode()) < 3e6


def luminance(colour):
    """The relative luminance of #rgb or #rrggbb, as WCAG defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out(scheme):
    style = (FOLDER / "page.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", style)
    colours = {name: luminance(values[scheme]) for name, *values in pairs}

    def contrast(a, b):
        low, high = sorted((colours[a], colours[b]))
        return (high + 0.05) / (low + 0.05)

    runs = [f"run{i}" for i in range(1, 9)]
    for name in ("ink", "soft", "focus", "worse", *runs):
        assert contrast(name, "paper") >= 4.5, name
    # Of the cells of a matrix, those of the darkest colour are the hardest to read.
    assert min(contrast("ink", "heat-right"), contrast("ink", "heat-wrong")) >= 4.5
    assert min(contrast("right", "paper"), contrast("wrong", "paper")) >= 2.5


def test_the_page_in_a_browser(tmp_path):
    content = report_content.content(2, 12)
    first = content["runs"][0]["evaluation"]
    for k, picture in enumerate(first["pictures"]):
        picture["errors"] = ["class"] if k == 1 else []
    path = tmp_path / "report.html"
    path.write_text(render(content), encoding="utf-8")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="light")
        complaints, requests = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 400

        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        page.check("#dark")
        dark = page.evaluate(paper)
        assert dark != light
        page.check("#system")
        assert page.evaluate(paper) == light
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(paper) == dark

        # A run, then its pictures with an error.
        assert page.locator(".picture:visible").count() == 6
        page.select_option("#with-error", "class")
        assert page.locator(".picture:visible").count() == 1
        assert page.inner_text("#shown") == "1 of 6 pictures"
        page.select_option("#pictures .choose-run", "1")
        assert page.locator(".picture:visible").count() == 0
        assert {choice.input_value() for choice in page.locator(".choose-run").all()} == {"1"}
        page.select_option("#pictures .choose-run", "0")

        page.locator(".enlarge:visible").press("Enter")
        assert page.is_visible("#large") and "F1" in page.inner_text("#large-caption")
        page.keyboard.press("Escape")
        assert not page.is_visible("#large")

        # Numbers from the highest, then from the lowest; what has none stands last.
        table = page.locator(".by-class:visible")
        cells = table.locator("tbody td:nth-child(4)")
        header = table.locator("th", has_text="Mask AP")
        values = [shown(entry["mask_AP"]) for entry in first["classes"]]
        for order, falling in (("descending", True), ("ascending", False)):
            header.locator("button").press("Enter")
            assert header.get_attribute("aria-sort") == order
            known = sorted((value for value in values if value != "–"), reverse=falling)
            assert cells.all_inner_texts() == [*known, "–"]

        line = page.locator("[data-key='0 precision50']")
        before = line.get_attribute("d")
        page.select_option("#choose-class", label="car")
        assert line.get_attribute("d") not in (before, "")
        assert (
            page.locator("#curves svg.chart").first.get_attribute("aria-label").endswith("of car")
        )
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
