"""Notebooks in JupyterLab, as a person uses them: a slider is moved and the picture changes."""

import dis
import importlib.util
import os
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import build
import nbformat
import psutil
import pytest

from tests.support.browser import chromium

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab is not installed"
)
ROOT = Path(__file__).parents[1]
SLIDER = "draw.explore("
NOTEBOOKS = [source for source in build.sources() if SLIDER in source.read_text()]
TWO_MINUTES = 120_000
# A kernel that waits, the picture below the sliders, the traceback of a cell.
READY = "#jp-main-statusbar :text('| Idle')"
PICTURE = ".widget-image"
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
# The pixels of the picture as text, null while it is loading.
PIXELS = f"""() => {{
  const picture = document.querySelector("{PICTURE}");
  if (!picture?.complete || !picture.naturalWidth) return null;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL();
}}"""
CHANGED = f"before => {{ const now = ({PIXELS})(); return now && now !== before; }}"
SETTINGS = (
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--IdentityProvider.token=",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def jupyterlab(folder, home):
    """Serve a folder without the user's own settings; yields the address and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kept = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    kept |= {f"JUPYTERLAB_{kind}_DIR": str(home / kind) for kind in ("WORKSPACES", "SETTINGS")}
    # Else a window asks whether to fetch news.
    settings = home / "SETTINGS" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyterlab", *SETTINGS, f"--port={port}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder}"],
            env=os.environ | build.ENVIRONMENT | kept | {"PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while not answers(f"{address}/api/status"):
            assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.5)
        yield address, server
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def names(code):
    """The global names that code assigns, and those that it reads before it assigns them."""
    made, read = set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            made.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            read |= {step.argval} - made
        elif isinstance(step.argval, types.CodeType):
            # The body of a function.
            read |= names(step.argval)[1] - made
    return made, read


def with_what_the_slider_needs(source):
    """The notebook reduced to the cell with the slider and to those that it depends on."""
    notebook = build.read(source)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    while SLIDER not in cells[-1].source:
        cells.pop()
    notebook.cells, wanted = [cells[-1]], names(compile(cells[-1].source, "", "exec"))[1]
    for cell in reversed(cells[:-1]):
        made, read = names(compile(cell.source, "", "exec"))
        if made & wanted:
            notebook.cells.insert(0, cell)
            wanted = wanted - made | read
    return notebook


@pytest.fixture
def folder(tmp_path, source):
    """The notebooks' folder, and in it the one notebook to open."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for entry in build.HERE.iterdir():
        if entry.suffix != ".ipynb":
            (folder / entry.name).symlink_to(entry)
    nbformat.write(with_what_the_slider_needs(source), folder / f"{source.stem}.ipynb")
    return folder


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_slider_changes_the_picture(browser, folder, source):
    with jupyterlab(folder, folder.parent) as (address, server):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.set_default_timeout(TWO_MINUTES)
        page.goto(f"{address}/lab/tree/{source.stem}.ipynb")
        page.wait_for_selector(READY)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_selector(f"{PICTURE}, {ERROR}", state="attached")
        assert page.locator(ERROR).all_text_contents() == []

        page.wait_for_function(PIXELS)
        handle = page.locator(".noUi-handle").first
        for move in (press_a_key, drag):
            before, seconds = page.evaluate(PIXELS), kernel_seconds(server)
            move(page, handle)
            page.wait_for_function(CHANGED, arg=before)
            assert kernel_seconds(server) - seconds < 1
        page.close()
        assert complaints == []


def kernel_seconds(server):
    """The seconds of processor time that the kernels of a server have used."""
    times = [child.cpu_times() for child in psutil.Process(server.pid).children()]
    return sum(time.user + time.system for time in times)


def press_a_key(page, handle):
    handle.focus()
    page.keyboard.press("ArrowRight")


def drag(page, handle):
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()
