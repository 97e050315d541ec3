"""The rules of the house: what may import what, that every step has its twin and its test, and how long a file may be."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD_AND_NUMPY = sys.stdlib_module_names | {"numpy"}

# A module imports only from lower rows, or from its own row without a circle.
LAYERS = [
    "kernels",
    "backend structures norm boxes box_coder anchors matcher sampler nms rois roi_align roi_pool"
    " roi_warp pooler losses labels masks transform",
    "resnet vgg backbone fpn single_scale neck shared_head rpn box_head mask_head postprocess optimizer",
    "mask_rcnn",
    "data interop engine drawing",
    "verify",
    "experiments",
    "command_line __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
# The only folder where the two implementations meet.
BOTH = "verify"
FROM_REFERENCE = {"reference", "reference.config", "reference.presets", "reference.shapes"}
WINGS = " ".join(LAYERS[LAYERS.index("mask_rcnn") + 1 :]).split()
# Modules that are no step of the algorithm.
ALONE = {"__init__", "backend", *WINGS}
PRIMITIVES = {
    "conv",
    "linear",
    "norm",
    "activations",
    "max_pool",
    "average_pool",
    "upsample",
    "autodiff",
    "grad_check",
    "train",
    "parameters",
    "config",
    "presets",
    "shapes",
}  # no twin needed


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for package in ("reference", "accelerated") for path in sources(package)}


def imports(path):
    """Dotted names of all that a file imports, also inside functions; ours are resolved to the module they live in."""
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def lines(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", sources("reference"), ids=module)
def test_reference_imports_numpy_and_the_standard_library(path):
    assert {
        name
        for name in imports(path)
        if name.split(".")[0] not in STANDARD_AND_NUMPY | {"reference"}
    } == set()


def test_reference_runs_without_torch():
    names = [module(path) for path in sources("reference")]
    code = f"import sys, importlib; sys.modules['torch'] = sys.modules['triton'] = None; [importlib.import_module(n) for n in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sources("accelerated"), ids=module)
def test_accelerated_takes_configuration_and_shapes_from_reference_and_nothing_else(path):
    if BOTH in path.relative_to(ROOT).parts:
        return
    assert {name for name in imports(path) if name.split(".")[0] == "reference"} <= FROM_REFERENCE


@pytest.mark.parametrize("path", sources("accelerated/kernels"), ids=module)
def test_kernels_import_nothing_of_ours_but_each_other(path):
    ours = {name for name in imports(path) if name.split(".")[0] in ("accelerated", "reference")}
    assert not {name for name in ours if not name.startswith("accelerated.kernels")}


@pytest.mark.parametrize("path", sources("accelerated"), ids=module)
def test_imports_run_one_way(path):
    own = module(path).split(".")
    if own == ["accelerated"]:
        assert not any(name.startswith("accelerated") for name in imports(path))
        return
    assert own[1] in LEVEL, f"{own[1]}: add it to LAYERS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "accelerated" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own[1]], (
                f"{module(path)} imports {name}, which stands above it"
            )


@pytest.mark.parametrize("package", ["reference", "accelerated"])
def test_no_circles(package):
    graph = {
        module(path): {name for name in imports(path) if name in MODULES and name != module(path)}
        for path in sources(package)
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_every_step_has_its_twin():
    steps = {path.stem for path in (ROOT / "accelerated").glob("*.py")} - ALONE
    twins = {path.stem for path in (ROOT / "reference").glob("*.py")} - {"__init__"}
    assert steps - twins == set(), "only in accelerated/"
    assert twins - steps - PRIMITIVES == set(), "only in reference/"


@pytest.mark.parametrize("package", ["reference", "accelerated"])
def test_every_step_has_its_test(package):
    steps = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in steps if not (ROOT / "tests" / f"test_{name}.py").exists()} == set()


@pytest.mark.parametrize("path", sources("accelerated/kernels"), ids=module)
def test_every_kernel_belongs_to_an_operator(path):
    shared = {"__init__", "sampling", "tables"}
    operator = path.stem.removesuffix("_backward")
    assert path.stem in shared or (ROOT / "accelerated" / f"{operator}.py").exists()


def test_names_say_what_a_file_is():
    assert not [
        path
        for package in ("reference", "accelerated", "tests")
        for path in sources(package)
        if path.stem.strip("_") in ("utils", "common", "misc", "helpers")
    ]


@pytest.mark.parametrize("path", [*sources("reference"), *sources("accelerated")], ids=module)
def test_a_file_is_one_idea(path):
    assert lines(path) <= 400


def test_line_budgets():
    assert sum(map(lines, sources("reference"))) < 4000
    algorithm = [
        path
        for path in sources("accelerated")
        if path.relative_to(ROOT).parts[1].removesuffix(".py") not in {*WINGS, "__init__"}
    ]
    assert sum(map(lines, algorithm)) < 4300
