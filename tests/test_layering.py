"""The rules of the house: imports, twins, tests, headers, comments and lengths of files."""

import ast
import graphlib
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD_AND_NUMPY = sys.stdlib_module_names | {"numpy"}

# A module imports only from lower rows, or from its own row without a circle.
LAYERS = [
    "kernels",
    "backend structures processes conv norm parameters boxes box_coder anchors matcher sampler nms"
    " rois roi_align roi_pool roi_warp pooler losses labels masks transform",
    "resnet vgg backbone fpn single_scale neck shared_head rpn box_head mask_head postprocess"
    " optimizer deepmask",
    "mask_rcnn",
    "data interop engine drawing",
    "verify analysis",
    "experiments",
    "command_line __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
# The only folder where the two implementations meet.
BOTH = "verify"
FROM_REFERENCE = {"reference", "reference.config", "reference.presets", "reference.shapes"}
WINGS = " ".join(LAYERS[LAYERS.index("mask_rcnn") + 1 :]).split()
# Modules that are no step of the algorithm.
ALONE = {"__init__", "backend", "processes", *WINGS}
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
    "typed",
    "checkpoint",
    "average_precision",
    "windows",
    "augmentation",
}  # no twin needed


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for package in ("reference", "accelerated") for path in sources(package)}


def imports(path):
    """Yield the dotted names that a file imports, also in functions; ours resolve to modules."""
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


def written_lines(path):
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", sources("reference"), ids=module)
def test_reference_imports_numpy_and_the_standard_library(path):
    assert {
        name
        for name in imports(path)
        if name.split(".")[0] not in STANDARD_AND_NUMPY | {"reference"}
    } == set()


def test_reference_runs_without_torch():
    names = [module(path) for path in sources("reference")]
    absent = "import sys, importlib; sys.modules['torch'] = sys.modules['triton'] = None"
    code = f"{absent}; [importlib.import_module(n) for n in {names}]"
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
    # The package exports from any row, on first use: see the next test.
    if own == ["accelerated"]:
        return
    assert own[1] in LEVEL, f"{own[1]}: add it to LAYERS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "accelerated" and len(parts) > 1:
            assert LEVEL[parts[1]] <= LEVEL[own[1]], (
                f"{module(path)} imports {name}, which stands above it"
            )


def test_the_package_itself_imports_nothing_of_ours():
    """Its exports are imported on first use, and by type checkers."""
    path = ROOT / "accelerated" / "__init__.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            assert {getattr(node, "module", name).split(".")[0] for name in names} <= (
                sys.stdlib_module_names
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
    shared = {"__init__", "arguments", "bins", "sampling", "tables", "tiles"}
    # The targets of masks have two operators: sampled from masks, and drawn from polygons.
    operator = {"polygons": "masks"}.get(path.stem, path.stem.removesuffix("_backward"))
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
    """The whole reference, and the algorithm in accelerated/, in lines that are not blank."""
    assert sum(map(written_lines, sources("reference"))) < 4040
    algorithm = [
        path
        for path in sources("accelerated")
        if path.relative_to(ROOT).parts[1].removesuffix(".py") not in {*WINGS, "__init__"}
    ]
    assert sum(map(written_lines, algorithm)) < 5950


TWINS = sorted(
    {path.stem for path in (ROOT / "reference").glob("*.py")}
    & {path.stem for path in (ROOT / "accelerated").glob("*.py")} - {"__init__"}
)


def header(package, name):
    return ast.get_docstring(ast.parse((ROOT / package / f"{name}.py").read_text())) or ""


def citations(text):
    """The papers and sections in brackets, such as [Mask R-CNN §3]."""
    return set(re.findall(r"\[([^\]]*(?:§|et al|table|figure)[^\]]*)\]", " ".join(text.split())))


def legend(text):
    """{letter: the words of its meaning}."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    lines = [part.removeprefix("Legend: ") for part in paragraphs if part.startswith("Legend: ")]
    entries = re.findall(r"(?:^|, |and )([A-Z]) ((?:(?!, [A-Z] | and [A-Z] ).)*)", " ".join(lines))
    return {
        letter: {word.rstrip("s") for word in re.findall(r"[A-Za-z]{3,}", meaning)}
        for letter, meaning in entries
    }


@pytest.mark.parametrize("name", TWINS)
def test_twins_open_with_the_same_words(name):
    ours, theirs = header("accelerated", name), header("reference", name)
    assert ours.splitlines()[0] == theirs.splitlines()[0]
    assert citations(ours) == citations(theirs)
    for text in (ours, theirs):
        for part in text.split("\n\n"):
            assert not re.match(r"(Shapes:|[A-Z] (images|RoIs|rois|boxes)\b)", part), "say Legend:"
    shared = legend(ours).keys() & legend(theirs).keys()
    differ = [letter for letter in shared if not legend(ours)[letter] & legend(theirs)[letter]]
    assert not differ, f"the legends mean different things by {differ}"


@pytest.mark.parametrize("folder", ["verify", "interop", "engine", "data", "drawing", "kernels"])
def test_folders_have_an_empty_face(folder):
    """A folder's __init__ holds a docstring and re-exports, no code."""
    body = ast.parse((ROOT / "accelerated" / folder / "__init__.py").read_text()).body
    allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
    assert all(isinstance(node, allowed) for node in body)
    assigned = [node.targets[0].id for node in body if isinstance(node, ast.Assign)]
    assert assigned in ([], ["__all__"])


TRAILING = [
    path for path in [*sources("reference"), *sources("accelerated")] if "triton" not in path.parts
]


@pytest.mark.parametrize("path", TRAILING, ids=module)
def test_comments_stand_above_their_line(path):
    """Kernels are exempt: the shapes of their arguments stand next to them."""
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    trailing = [
        (token.start[0], token.string)
        for token in tokens
        if token.type == tokenize.COMMENT
        and token.line[: token.start[1]].strip()
        and not re.match(r"# (type|pyright|noqa|fmt)\b", token.string)
    ]
    assert not trailing


def is_annotated(function, method):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if method and named and named[0].arg in ("self", "cls"):
        named = named[1:]
    return function.returns is not None and all(a.annotation is not None for a in named)


def public_functions(tree, method=False):
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, method=True)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not kernel:
                yield node, method


@pytest.mark.parametrize("path", [*sources("reference"), *sources("accelerated")], ids=module)
def test_public_signatures_are_annotated(path):
    """Triton's kernels are exempt: their arguments have shapes in comments."""
    functions = public_functions(ast.parse(path.read_text()))
    assert [node.name for node, method in functions if not is_annotated(node, method)] == []
