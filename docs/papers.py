"""Write the table "From the papers to the code" of README.md from papers.json: `make map`.

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
BEGIN, END = "<!-- papers: written by make map -->", "<!-- end of papers -->"
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
            where.insert(0, f"**[{paper}](https://arxiv.org/abs/{papers[paper]})**")
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
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def readme(text: str) -> str:
    """Return the text of README.md with the table between its two markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    content = json.loads((ROOT / "docs" / "papers.json").read_text())
    return f"{before}{BEGIN}\n{table(**content)}\n{END}{after}"


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
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text()))
