"""Reads the machine code that Triton compiled: registers, spills, loads, instructions per loop.

`cuobjdump` and `nvdisasm` come with Triton. Loops are the natural loops of the control-flow graph;
the line information names the loop of the source that each comes from. Slow paths, which a call or
a divergent branch reaches, belong to no loop and are not counted.
"""

import ast
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Per multiprocessor: KiB of shared memory; all three chips have 64 warps, 32 programs, 64 K
# registers in four parts [CUDA C++ Programming Guide, compute capabilities].
SHARED_KIB = {80: 164, 90: 228, 100: 228}
WARPS, PROGRAMS, REGISTERS_PER_PART, PARTS = 64, 32, 16384, 4
# Registers are given to a warp in units of 256, shared memory to a program with 1 KiB on top.
REGISTER_UNIT, SHARED_OVERHEAD = 256, 1024

LINE = re.compile(r'//## File "(.+?)", line (\d+)( inlined at)?')
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(.*?)\s*;?\s*(/\*.*)?$")
LABEL = re.compile(r"^(\.L_\w+):")
# A call of a label, not of a function, is a branch as well.
BRANCH = re.compile(r"^(?:@!?\w+ )?(?:BRA|CALL)(\.\S+)?\s+(.*?)`\((\.L_\w+)\)")
# A warp that parted meets again at the label that BSSY named.
PART, MEET = (
    re.compile(r"BSSY(?:\.\w+)* (B\d+), `\((\.L_\w+)\)"),
    re.compile(r"BSYNC(?:\.\w+)* (B\d+)"),
)
ACCESS = re.compile(r"\b(LDG|LDGSTS|STG)((?:\.\w+)*)")
SPILL = re.compile(r"\b(LDL|STL)\b")


@dataclass
class Loop:
    """One level of a kernel: a loop, or, with depth 0, what stands in none.

    name          of the loop in the source, such as "for q" or "while marks != 0"
    depth         1: the outermost loops
    instructions  in one visit, without those of loops inside
    spills        of these, accesses to local memory
    load, store   bytes per thread of the widest access to global memory; 0: none
    innermost     no loop lies inside
    """

    name: str
    depth: int
    instructions: int
    spills: int
    load: int
    store: int
    innermost: bool


@dataclass
class Code:
    """One kernel compiled for one chip.

    chip        compute capability times ten, such as 90
    case        what was called, such as "roi_align 7x7 bf16"
    grid        programs along each axis
    programs    that fit on a multiprocessor at a time
    loops       level 0 first
    tensor_ops  instructions of the tensor cores
    barriers    instructions that let a program's warps wait for each other
    """

    chip: int
    case: str
    kernel: str
    grid: tuple[int, ...]
    warps: int
    registers: int
    stack: int
    shared: int
    programs: int
    loops: list[Loop]
    tensor_ops: int
    barriers: int

    @property
    def occupancy(self) -> float:
        """Return the share of a multiprocessor's warps that fit."""
        return self.programs * self.warps / WARPS

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the instructions of each level, loops of equal depth together."""
        deepest = max(loop.depth for loop in self.loops)
        return tuple(
            sum(loop.instructions for loop in self.loops if loop.depth == depth)
            for depth in range(deepest + 1)
        )

    @property
    def inner_spills(self) -> int:
        """Return the accesses to local memory in loops that contain no other."""
        return sum(loop.spills for loop in self.loops if loop.innermost and loop.depth)

    @property
    def load(self) -> int:
        """Return the bytes per thread of the widest load of the deepest level that loads."""
        return self._widest("load")

    @property
    def store(self) -> int:
        """Return the same of stores."""
        return self._widest("store")

    def _widest(self, access):
        found = [(loop.depth, getattr(loop, access)) for loop in self.loops]
        return max((entry for entry in found if entry[1]), default=(0, 0))[1]


def read(compiled: Any, chip: int, case: str, kernel: str, grid: tuple[int, ...]) -> Code:
    """Read a `triton.compiler.CompiledKernel`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", "-gi", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump did not tell the registers of {kernel}: {usage[:200]}")
    registers, stack = map(int, found.groups())
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    instructions, labels = disassembled(text)
    names = [instruction for instruction, _ in instructions]
    return Code(
        chip,
        case,
        kernel,
        tuple(grid),
        warps,
        registers,
        stack,
        shared,
        programs_per_multiprocessor(chip, registers, warps, shared),
        loops(instructions, labels),
        tensor_ops=sum(bool(re.search(r"\b\w*(HG?MMA|UTC\w*MMA)\b", name)) for name in names),
        barriers=sum(bool(re.search(r"\bBAR\b", name)) for name in names),
    )


def programs_per_multiprocessor(chip: int, registers: int, warps: int, shared: int) -> int:
    """Return how many programs of a kernel run on a multiprocessor at a time."""
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS_PER_PART // per_warp * PARTS // warps
    by_shared = SHARED_KIB[chip] * 1024 // (shared + SHARED_OVERHEAD)
    return min(PROGRAMS, WARPS // warps, by_registers, by_shared)


def tool(name: str) -> Path:
    """Return the path of a program that comes with Triton; RuntimeError if it is missing."""
    try:
        from triton.backends import nvidia
    except ImportError:
        raise RuntimeError(
            "compiled code needs the package triton, which there is for Linux: pip install triton"
        ) from None
    path = Path(next(iter(nvidia.__path__))) / "bin" / name
    if not path.exists():
        raise RuntimeError(f"{path} is missing: install triton from its wheel, which contains it")
    return path


def _tool(name, *arguments):
    result = subprocess.run([tool(name), *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr.strip()[:300]}")
    return result.stdout


def disassembled(text: str) -> tuple[list[tuple[str, tuple]], dict[str, int]]:
    """Return the instructions, each with its places in the source, and where labels point.

    Places are (file, line), the kernel's own first, then those of the functions inlined there.
    """
    instructions, labels, place, complete = [], {}, (), True
    for line in text.splitlines():
        if found := LINE.search(line):
            # Lines about one instruction run from the innermost function to the kernel.
            place = ((found[1], int(found[2])), *(() if complete else place))
            complete = not found[3]
        elif found := LABEL.match(line):
            labels[found[1]] = len(instructions)
        elif found := INSTRUCTION.match(line):
            instructions.append((found[1], place))
    return instructions, labels


def loops(instructions: list[tuple[str, tuple]], labels: dict[str, int]) -> list[Loop]:
    """Return the levels of a kernel: what stands in no loop, then its loops from outside in."""
    blocks, follows = _graph([text for text, _ in instructions], labels)
    bodies = _natural_loops(follows)
    reached = set(_dominators(follows))
    levels = [(None, reached), *sorted(bodies.items(), key=lambda item: (-len(item[1]), item[0]))]
    found = []
    for index, (head, body) in enumerate(levels):
        inside = [other for _, other in levels[index + 1 :] if other < body]
        own = sorted(body - set().union(*inside))
        listed = [instructions[i] for block in own for i in range(*blocks[block])]
        texts = [text for text, _ in listed]
        latch = [instructions[blocks[block][1] - 1] for block in body if head in follows[block]]
        found.append(
            Loop(
                _name(latch) if head is not None else "",
                sum(body <= other for _, other in levels[1 : index + 1]),
                len(texts),
                sum(bool(SPILL.search(text)) for text in texts),
                _widest(texts, ("LDG", "LDGSTS")),
                _widest(texts, ("STG",)),
                not inside,
            )
        )
    return found


def _graph(texts, labels):
    """Return the basic blocks as (first, end), and the blocks that each may go on to."""
    ends, targets, meeting = {len(texts)}, {}, {}
    for i, text in enumerate(texts):
        if found := BRANCH.match(text):
            # A divergent warp, which there is none here, would take BRA.DIV to a slow path.
            divergent = ".DIV" in (found[1] or "")
            always = not text.startswith("@") and not found[2].strip()
            targets[i] = ([] if divergent else [labels[found[3]]], not always)
        elif found := PART.search(text):
            meeting[found[1]] = labels[found[2]]
        elif (found := MEET.search(text)) and found[1] in meeting:
            targets[i] = ([meeting[found[1]]], text.startswith("@"))
        elif re.match(r"(EXIT|RET)\b", text):
            targets[i] = ([], False)
    starts = sorted({0, *labels.values(), *(i + 1 for i in targets)} - ends)
    blocks = list(zip(starts, [*starts[1:], len(texts)], strict=True))
    number = {first: index for index, (first, _) in enumerate(blocks)}
    follows = []
    for _, end in blocks:
        jumps, falls = targets.get(end - 1, ([], True))
        going = [*jumps, *([end] if falls else [])]
        follows.append({number[target] for target in going if target in number})
    return blocks, follows


def _dominators(follows):
    """Return {block: the blocks on every way to it} of the blocks that can be reached."""
    reached, waiting = {0}, [0]
    while waiting:
        fresh = follows[waiting.pop()] - reached
        reached |= fresh
        waiting += fresh
    before = {block: [b for b in reached if block in follows[b]] for block in reached}
    dominators = {block: {0} if block == 0 else set(reached) for block in reached}
    changed = True
    while changed:
        changed = False
        for block in sorted(reached - {0}):
            new = set.intersection(*(dominators[b] for b in before[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def _natural_loops(follows):
    """Return {head: blocks} of the loops: a branch back to a block that dominates it."""
    dominators, bodies = _dominators(follows), {}
    for latch in dominators:
        for head in follows[latch] & dominators[latch]:
            body, waiting = {head}, [latch]
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += [b for b in dominators if block in follows[b]]
            bodies[head] = bodies.get(head, set()) | body
    return bodies


def _widest(texts, names):
    accesses = [ACCESS.search(text) for text in texts]
    return max((_bytes(x[2]) for x in accesses if x is not None and x[1] in names), default=0)


def _bytes(suffixes):
    for suffix, size in (("256", 32), ("128", 16), ("64", 8), ("16", 2), ("8", 1)):
        if re.search(rf"\.[US]?{suffix}\b", suffixes):
            return size
    return 4


def _name(latches):
    """Name the innermost loop of the source in which the branches back to a head stand."""
    for _, place in latches:
        for file, line in reversed(place):
            around = [entry for entry in _source_loops(file) if entry[0] <= line <= entry[1]]
            if around:
                return max(around)[2]
    return "?"


@cache
def _source_loops(file):
    """Return (first line, last line, name) of the loops in a file that stay loops."""
    try:
        tree = ast.parse(Path(file).read_text())
    except OSError:
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.While):
            found.append((node.lineno, node.end_lineno, f"while {ast.unparse(node.test)}"))
        elif isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter):
            found.append((node.lineno, node.end_lineno, f"for {ast.unparse(node.target)}"))
    return found
