"""How often the loops of interpreted kernels run, from the lines that the interpreter executes."""

import ast
import sys
from collections import Counter
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "accelerated" / "kernels" / "triton"


def functions():
    """Yield the functions of all kernel files, as syntax trees."""
    for path in sorted(KERNELS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield node


def iterations(names, call):
    """Return {kernel: [programs, iterations of each level of loops, from the outside in]}.

    Of loops one after the other, those of the longest count.

    names  of the kernels
    call   runs them, interpreted
    """
    hits = Counter()

    def count(frame, event, argument):
        if event == "line":
            hits[frame.f_code.co_name, frame.f_lineno] += 1
        return count

    outside = sys.gettrace()
    sys.settrace(lambda frame, *_: count if frame.f_code.co_name in names else None)
    try:
        call()
    finally:
        sys.settrace(outside)
    return {node.name: _levels(node, hits) for node in functions() if node.name in names}


def _levels(function, hits):
    levels = []

    def visit(node, depth):
        loop = isinstance(node, ast.While) or (
            isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter)
        )
        depth += loop
        if loop or node is function:
            levels.extend([0] * (depth + 1 - len(levels)))
            # A statement of several lines counts more than once, a docstring never.
            body = [x for x in node.body if not isinstance(x, ast.Expr)]
            ran = min(hits[function.name, statement.lineno] for statement in body)
            levels[depth] = max(levels[depth], ran)
        for child in ast.iter_child_nodes(node):
            visit(child, depth)

    visit(function, 0)
    return levels
