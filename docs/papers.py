"""Write the map from the papers to the code from papers.json: `make map`.

papers.md holds the map, a row per step; README.md an overview of it, a row per paper.

An entry of "steps" in papers.json:

paper, section  where the step is described; "papers" holds each paper's number at arxiv.org
what            the step, in a few words
reference       names in reference/: "file.function", "file.Class.method" or "file"
accelerated, tests  paths
notebooks       names of files in notebooks/, without their suffix
specification   sections of SPEC.md
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = ("paper", "reference", "accelerated, test", "notebook", "SPEC")
OVERVIEW_COLUMNS = ("paper", "reference", "notebook")
BEGIN, END = "<!-- papers: written by make map -->", "<!-- end of papers -->"
PAGE = """# From the papers to the code

Every row is a step of the algorithm: the section of the paper that describes it, the functions in
NumPy, the same in PyTorch and Triton, the test that holds them together, the notebook that explains
it, and the section of the specification that fixes its details. `make map` writes this page from
`papers.json`, and a test looks up every name in it.

{table}
"""
TRITON = "accelerated/kernels/triton/"


def notebook(name: str) -> str:
    """Return the path of a notebook, or of the playground."""
    return f"notebooks/{name}{'.html' if name == 'playground' else '.ipynb'}"


def table(papers: dict[str, str], steps: list[dict]) -> str:
    """Write the table in Markdown. The first step of a paper names it, with a link."""
    rows, named = [COLUMNS, ["---"] * len(COLUMNS)], set()
    for step in steps:
        paper, where = step["paper"], [step["section"]] if step["section"] else []
        if paper not in named:
            where.insert(0, f"**{_paper(paper, papers[paper])}**")
        named.add(paper)
        columns = (
            _functions(step["reference"]),
            [
                *(_link(_implementation(path, step), path) for path in step["accelerated"]),
                *(_link(_test(path, step), path) for path in step["tests"]),
            ],
            [_link(_short(name), notebook(name)) for name in step["notebooks"]],
            [_link(f"§{number}", _section(number)) for number in step["specification"]],
        )
        cells = [", ".join(links) or "-" for links in columns]
        rows.append([f"{' '.join(where)}: {step['what']}", *cells])
    return _markdown(rows)


def one_folder_down(text: str) -> str:
    """Return `text` with its links, which start from the project's folder, for a folder in it."""
    return re.sub(r"\]\((?!https:)", "](../", text)


def overview(papers: dict[str, str], steps: list[dict]) -> str:
    """Write a table in Markdown with a row per paper: its files in reference/, its notebooks."""
    rows = [OVERVIEW_COLUMNS, ["---"] * len(OVERVIEW_COLUMNS)]
    for paper, number in papers.items():
        own = [step for step in steps if step["paper"] == paper]
        files = dict.fromkeys(name.split(".")[0] for step in own for name in step["reference"])
        notebooks = dict.fromkeys(name for step in own for name in step["notebooks"])
        cells = (
            [_link(file, f"reference/{file}.py") for file in files],
            [_link(_short(name), notebook(name)) for name in notebooks],
        )
        rows.append([_paper(paper, number), *(", ".join(links) or "-" for links in cells)])
    return _markdown(rows)


def readme(text: str, content: dict) -> str:
    """Return the text of README.md with the overview between its two markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{overview(**content)}\n{END}{after}"


def page(content: dict) -> str:
    """Return the text of papers.md."""
    return PAGE.format(table=one_folder_down(table(**content)))


def _markdown(rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _paper(name, number):
    return _link(name, f"https://arxiv.org/abs/{number}")


def _link(text, path):
    return f"[{text}]({path})"


def _functions(names):
    """Link each file once, before the functions in it."""
    functions = {}
    for file, _, function in (name.partition(".") for name in names):
        functions.setdefault(file, []).append(f" `{function}`" if function else "")
    return [
        _link(file, f"reference/{file}.py") + ",".join(listed) for file, listed in functions.items()
    ]


def _first(step):
    return step["reference"][0].split(".")[0]


def _implementation(path, step):
    """Name the file, unless it is a kernel or the twin of the first file of the reference."""
    if path.startswith(TRITON):
        return "Triton"
    return "PyTorch" if path == f"accelerated/{_first(step)}.py" else Path(path).stem


def _test(path, step):
    name = Path(path).stem
    return "test" if name == f"test_{_first(step)}" else name


def _short(name):
    return name if name == "playground" else str(int(name[:2]))


def _section(number):
    """Return the link to a section of the specification, as code hosts form it."""
    heading = re.search(rf"^## (§{number} .*)$", (ROOT / "docs/SPEC.md").read_text(), re.MULTILINE)
    return "docs/SPEC.md#" + re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")


if __name__ == "__main__":
    content = json.loads((ROOT / "docs" / "papers.json").read_text())
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(), content))
    (ROOT / "docs" / "papers.md").write_text(page(content))
