"""Interpreter of the part of pickle's language that writes numbers, texts, arrays and containers.

A pickle is a program. Python's own interpreter imports and calls what the program names, reserves
what it announces, and hashes whatever it uses as a key. This one calls only functions that it is
given. What it does is bounded by the length of the program: texts and bytes are copied from it,
functions read and make at most `FACTOR` times as many, and at most `INSTRUCTIONS` are followed.
Nothing walks, compares, hashes or prints a container, so that lists which hold the one before twice
cost what their instructions cost.
"""

import codecs
import pickletools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from accelerated.data.values import short

# Items that functions may read and make, per byte of the program: text to bytes, bytes to an array.
# So many bytes may the tensors of a file have, too, per byte of it.
FACTOR = 4
# Fifty times those of a file with the weights and an optimizer's state.
INSTRUCTIONS = 1_000_000

CONSTANTS = {"N": None, "\x88": True, "\x89": False}
NUMBERS = {"K": "<B", "M": "<H", "J": "<i", "G": ">d"}
# How a length is written, and what becomes of so many bytes. Python 2's texts are latin1.
COUNTED: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    "X": ("<I", lambda raw: str(raw, "utf-8", "surrogatepass")),
    "\x8c": ("<B", lambda raw: str(raw, "utf-8", "surrogatepass")),
    "\x8d": ("<Q", lambda raw: str(raw, "utf-8", "surrogatepass")),
    "U": ("<B", lambda raw: str(raw, "latin1")),
    "T": ("<I", lambda raw: str(raw, "latin1")),
    "C": ("<B", bytes),
    "B": ("<I", bytes),
    "\x8e": ("<Q", bytes),
    "\x96": ("<Q", bytearray),
    "\x8a": ("<B", lambda raw: int.from_bytes(raw, "little", signed=True)),
}
LINES: dict[str, Callable[[bytes], Any]] = {
    # Python 2 writes its booleans as these integers.
    "I": lambda line: {b"00": False, b"01": True}.get(line) if len(line) == 2 else int(line),
    "L": lambda line: int(line.removesuffix(b"L")),
    "F": float,
    "S": lambda line: str(codecs.escape_decode(line[1:-1])[0], "latin1"),
    "V": lambda line: str(line, "raw-unicode-escape"),
}
# The written kinds of index of PUT and GET; None is a line of text.
PUT, GET = {"p": None, "q": "<B", "r": "<I"}, {"g": None, "h": "<B", "j": "<I"}
# Of all instructions.
NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
# Bytes to skip: the protocol, and how many bytes will follow.
SKIPPED = {"\x80": 1, "\x95": 8}

SIZED = (str, bytes, bytearray, list, tuple, dict)
Functions = Mapping[tuple[str, str], Any]


class NotAdmittedError(ValueError):
    """The pickle contains something that is neither an array nor a container."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error of a damaged file, which should be `what`, into a ValueError of one line."""
    try:
        yield
    except (NotAdmittedError, OSError):
        raise
    # A damaged file may raise any error.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"not {what}, or damaged ({type(error).__name__}: {reason})") from error


def fill(mapping: dict, pairs: Iterable[tuple[Any, Any]]) -> dict:
    """Add pairs to a dictionary.

    Keys are texts, bytes, small whole numbers or None, whose hashes an attacker cannot make slow.
    """
    for key, value in pairs:
        small = isinstance(key, int) and abs(key) < 1 << 63
        if not small and not isinstance(key, str | bytes | None):
            raise NotAdmittedError(
                f"refused: a dictionary has a {type(key).__name__} as a key; only texts and whole"
                " numbers are admitted"
            )
        mapping[key] = value
    return mapping


def said(value: Any) -> str:
    """Return a value as text for messages, of a container only its type."""
    scalar = isinstance(value, str | bytes | int | float | None)
    return short(value) if scalar else type(value).__name__


class Machine:
    """Runs the pickles in `program`, one after the other.

    functions  {(module, name): what stands for it}; what they make is a copy of their arguments
    persistent what stands for an object outside of the pickle, given its identification
    """

    def __init__(
        self,
        program: bytes,
        functions: Functions,
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.program, self.functions, self.persistent = program, functions, persistent
        self.position = 0
        self.left, self.instructions = FACTOR * len(program), INSTRUCTIONS

    def run(self) -> Any:
        """Run the next pickle and return its value.

        Raises NotAdmittedError for what is refused, and any error for a damaged program.
        """
        self.stack, self.marks, self.memo = [], [], {}
        while (code := chr(self._take(1)[0])) != ".":
            self.instructions -= 1
            if self.instructions < 0:
                raise NotAdmittedError(
                    f"refused: it has more than {INSTRUCTIONS:,} instructions; save the tensors"
                    " alone, as .safetensors"
                )
            self._step(code)
        (value,) = self.stack
        return value

    def _step(self, code):
        stack = self.stack
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            stack.append(self._number(NUMBERS[code]))
        elif code in COUNTED:
            length, convert = COUNTED[code]
            stack.append(convert(self._take(self._number(length))))
        elif code in LINES:
            stack.append(LINES[code](self._line()))
        elif code in PUT:
            self._remember(self._index(PUT[code]))
        elif code in GET:
            stack.append(self.memo[self._index(GET[code])])
        elif code in SKIPPED:
            self._take(SKIPPED[code])
        elif code in OTHERS:
            OTHERS[code](self)
        elif code in NAMES:
            raise NotAdmittedError(
                f"refused: it has the instruction {NAMES[code]}, which no array and no container"
                " needs. Nothing was executed."
            )
        else:
            raise ValueError(f"unknown instruction {code!r}")

    def _take(self, count):
        start, self.position = self.position, self.position + count
        if self.position > len(self.program):
            raise EOFError("it ends too early")
        return self.program[start : self.position]

    def _number(self, form):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self):
        return self._take(self.program.index(b"\n", self.position) + 1 - self.position)[:-1]

    def _index(self, form):
        return int(self._line()) if form is None else self._number(form)

    def _remember(self, index):
        value = self.memo[index] = self.stack[-1]
        if isinstance(value, Unfinished):
            value.index = index

    def _above_mark(self):
        """Remove from the stack what stands above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _last(self, count):
        items = self.stack[-count:]
        if len(items) != count:
            raise IndexError("it takes more than it has")
        del self.stack[-count:]
        return items

    def _extend(self, items):
        if not isinstance(self.stack[-1], list):
            raise TypeError("it appends to what is no list")
        self.stack[-1].extend(items)

    def _update(self, items):
        if not isinstance(self.stack[-1], dict):
            raise TypeError("it adds to what is no dictionary")
        fill(self.stack[-1], _pairs(items))

    def _find(self, module, name):
        if not (
            isinstance(module, str) and isinstance(name, str) and (module + name).isprintable()
        ):
            raise TypeError("it calls what has no name")
        if (module, name) not in self.functions:
            raise NotAdmittedError(
                f"refused: it would call {module}.{name}, which is neither an array nor a tensor"
                " nor a container. Nothing was executed. If you trust the file, load it with its"
                " own library and save {name: array} as .safetensors."
            )
        self.stack.append(self.functions[module, name])

    def _call(self):
        function, arguments = self._last(2)
        self._pay(*arguments)
        self.stack.append(function(*arguments))
        self._pay(self.stack[-1])

    def _build(self):
        (state,) = self._last(1)
        unfinished = self.stack[-1]
        # An ordered dictionary may have attributes, which weights do not need.
        if isinstance(unfinished, dict):
            return
        if not isinstance(unfinished, Unfinished):
            raise TypeError(f"it gives attributes to a {type(unfinished).__name__}")
        self.stack[-1] = unfinished.finished(state)
        self._pay(self.stack[-1])
        if unfinished.index is not None:
            self.memo[unfinished.index] = self.stack[-1]

    def _pay(self, *values):
        """Count what a function reads or has made. Raises NotAdmittedError if that is too much."""
        for value in values:
            if isinstance(value, np.ndarray):
                self.left -= value.nbytes
            elif isinstance(value, SIZED):
                self.left -= len(value)
        if self.left < 0:
            raise NotAdmittedError(
                f"refused: its arrays and containers are more than {FACTOR} times as large as the"
                " file"
            )

    def _persist(self):
        (identification,) = self._last(1)
        if self.persistent is None:
            raise NotAdmittedError("refused: it refers to objects outside of the file")
        self.stack.append(self.persistent(identification))


class Unfinished:
    """An object between its creation and its state; `index` is where it is remembered."""

    index: int | None = None

    def finished(self, state: Any) -> Any:
        """Return what the object is with its state."""
        raise NotImplementedError


def _pairs(items):
    return zip(items[0::2], items[1::2], strict=True)


# The instructions that move what is on the stack.
OTHERS: dict[str, Callable[[Machine], Any]] = {
    "(": lambda m: m.marks.append(len(m.stack)),
    "0": lambda m: m._last(1),
    "1": lambda m: m._above_mark(),
    "\x94": lambda m: m._remember(len(m.memo)),
    ")": lambda m: m.stack.append(()),
    "]": lambda m: m.stack.append([]),
    "}": lambda m: m.stack.append({}),
    "t": lambda m: m.stack.append(tuple(m._above_mark())),
    "l": lambda m: m.stack.append(m._above_mark()),
    "d": lambda m: m.stack.append(fill({}, _pairs(m._above_mark()))),
    "\x85": lambda m: m.stack.append(tuple(m._last(1))),
    "\x86": lambda m: m.stack.append(tuple(m._last(2))),
    "\x87": lambda m: m.stack.append(tuple(m._last(3))),
    "a": lambda m: m._extend(m._last(1)),
    "e": lambda m: m._extend(m._above_mark()),
    "s": lambda m: m._update(m._last(2)),
    "u": lambda m: m._update(m._above_mark()),
    "c": lambda m: m._find(str(m._line(), "utf-8"), str(m._line(), "utf-8")),
    "\x93": lambda m: m._find(*m._last(2)),
    "R": lambda m: m._call(),
    "b": lambda m: m._build(),
    "Q": lambda m: m._persist(),
}
