"""The exports of the package: what `import accelerated` offers, imported on first use."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import accelerated

ROOT = Path(accelerated.__file__).parent


def run(code):
    """The standard output of Python code in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_imports_neither_torch_nor_triton():
    code = """
import sys
before = set(sys.modules)
import accelerated
imported = {name.split(".")[0] for name in set(sys.modules) - before}
assert imported <= sys.stdlib_module_names | {"accelerated"}, imported
assert not [name for name in sys.modules if name.startswith("accelerated.")]
assert accelerated.__version__
assert set(accelerated.__all__) <= set(dir(accelerated))
assert "torch" not in sys.modules
"""
    run(code)


def test_exports():
    from accelerated.interop import loading
    from accelerated.mask_rcnn import MaskRCNN
    from accelerated.structures import Detections, Target

    assert accelerated.MaskRCNN is MaskRCNN and accelerated.load is loading.load
    assert accelerated.Target is Target and accelerated.Detections is Detections
    assert accelerated.__version__ == metadata.version("maskrcnn-triton")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = accelerated.nothing


@pytest.mark.parametrize(
    "first",
    [
        "import accelerated",
        "from accelerated.roi_align import roi_align",
        "import accelerated.pooler",
        "from accelerated import *",
    ],
)
def test_roi_align_is_the_module_whatever_was_imported_before(first):
    run(
        f"{first}\nimport accelerated, types\n"
        "from accelerated import roi_align\n"
        "assert roi_align is accelerated.roi_align and isinstance(roi_align, types.ModuleType)\n"
        "assert callable(accelerated.roi_align.roi_align)"
    )


def test_help_names_every_file_in_the_package():
    words = set(accelerated.__doc__.replace(",", " ").split())
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert (files | folders) - words == set(), "add them to the docstring of accelerated"


def test_help_shows_the_exports():
    # Python 3.13 breaks long signatures.
    shown = "".join(run("import accelerated; help(accelerated)").split())
    for part in ("inreadingorder", "classMaskRCNN", "classTarget", "load(path_or_state_dict"):
        assert part in shown, part
