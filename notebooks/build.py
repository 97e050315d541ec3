"""Run the notebooks and write them with their outputs: `python notebooks/build.py [NAME ..]`.

A notebook is edited as `.py`, in the percent format of jupytext. The `.ipynb` beside it is made
here, and so is never edited.
"""

import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

__all__ = ["CellExecutionError"]

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
# One thread: the time of the processor is then comparable, and sums are added in one order.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "JUPYTER_PLATFORM_DIRS": "1"}
OFFLINE = """
import socket as _socket
def _refuse(self, address, _connect=_socket.socket.connect):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"a notebook must not use the network: {address}")
    return _connect(self, address)
_socket.socket.connect = _refuse
"""
PROCESSOR_TIME = "import os as _os; _t = _os.times(); _used = sum(_t[:4])"


def sources() -> list[Path]:
    """List the notebooks' sources in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(source: Path) -> NotebookNode:
    """Read a source as a notebook without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        # Random names of cells would make every version differ.
        cell["id"] = f"cell-{i}"
        cell["metadata"] = {}
    seconds = notebook.metadata["cpu_seconds"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "cpu_seconds": seconds}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: NotebookNode, before: str = "") -> float:
    """Run all cells in a fresh kernel without a network; returns the seconds of processor time.

    before  code that runs first and leaves no trace in the notebook
    Raises nbclient's CellExecutionError where a cell fails.
    """
    client = NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(HERE)}})
    client.extra_arguments = ["--log-level=ERROR"]
    client.create_kernel_manager()
    hidden = {"store_history": False, "silent": True, "timeout": 60}
    with client.setup_kernel(env=os.environ | ENVIRONMENT):
        run = run_sync(client.kc.execute_interactive)
        reply = run(OFFLINE + before, **hidden)
        assert reply["content"]["status"] == "ok", reply["content"]
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i)
        expressions = {"user_expressions": {"seconds": "_used"}}
        reply = run(PROCESSOR_TIME, **hidden, **expressions)
    clean(notebook)
    return float(reply["content"]["user_expressions"]["seconds"]["data"]["text/plain"])


def clean(notebook: NotebookNode) -> None:
    """Drop what only lives with a kernel: sliders, times, and the state of both."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell["metadata"] = {}
        if cell.cell_type == "code":
            cell["outputs"] = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
            for output in filter(has_better, cell.outputs):
                output.data.pop("text/plain", None)


def has_better(output: NotebookNode) -> bool:
    """Tell whether an output has a picture or a page, whose plain text is only its type's name."""
    return bool({"image/png", "text/html", "text/markdown"} & set(output.get("data", {})))


def texts(notebook: NotebookNode) -> list[str]:
    """List the text of every output; pictures are left out.

    Rounding errors depend on the processor, so every number below 1e-8 reads "tiny".
    """
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                found.append(f"{output.name}: {output.text}")
            elif output.output_type == "error":
                found.append(f"error: {output.ename}: {output.evalue}")
            else:
                data = output.data
                found += [data[key] for key in ("text/html", "text/markdown") if key in data]
                if not has_better(output):
                    found.append(data.get("text/plain", ""))
    tiny = re.compile(r"\b0?0?\d(\.\d+)?e-(09|[1-9]\d|[1-9]\d\d)\b|\b0\.0+e\+00\b")
    return [tiny.sub("tiny", text) for text in found]


def main(names: list[str]) -> None:
    """Run the notebooks whose names contain one of `names`, or all, and write them."""
    for source in sources():
        if names and not any(name in source.name for name in names):
            continue
        notebook = read(source)
        seconds = execute(notebook)
        target = source.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        budget, size = notebook.metadata["cpu_seconds"], target.stat().st_size / 1000
        print(f"{source.stem:24} {seconds:5.1f} CPU s of {budget}, {size:4.0f} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
