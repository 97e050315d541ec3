"""Reader of pickles that contain only arrays and containers; it executes nothing that they name.

A pickle is a program that may call anything it can import. Here it can call only what `ADMITTED`
lists, all of it written here. Not even NumPy's reconstruction runs: it trusts what a forged dtype
says about the bytes that follow.
"""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from accelerated.interop.pickle_machine import (
    Machine,
    NotAdmittedError,
    Unfinished,
    fill,
    reading,
    said,
)

# Booleans, integers, floats.
PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class _Dtype(Unfinished):
    """Stand-in for numpy.dtype: a plain number type and its byte order."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            arrays = f"arrays of type {said(code)}"
            if code in ("O", "O8", "O4"):
                arrays = "object arrays, which may contain anything"
            raise NotAdmittedError(f"refused: it contains {arrays}; only numbers are admitted")
        self.code = code.lstrip("<>=|")
        self.order = code[0] if code[0] in "<>" else "="

    def finished(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "="
        return self

    def array(self, raw):
        """Copy the numbers in `raw` to an array in this machine's byte order."""
        # Bytes of Python 2 arrive as text.
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes | bytearray):
            raise TypeError("the numbers of an array are no bytes")
        return np.frombuffer(raw, self.order + self.code).astype(self.code)


class _Array(Unfinished):
    """Stand-in for numpy.ndarray until its content is read."""

    def __init__(self, *_):
        pass

    def finished(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise NotAdmittedError("refused: it contains an array without a dtype")
        return dtype.array(raw).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype, raw):
    return dtype.array(raw)[0]


def _from_buffer(raw, dtype, shape, order):
    return dtype.array(raw).reshape(shape, order=order)


def _encode(text, encoding):
    if encoding != "latin1":
        raise NotAdmittedError(
            f"refused: it encodes text as {said(encoding)}; only latin1 is admitted"
        )
    return text.encode("latin1")


def _no_bytes():
    """Return empty bytes, which Python 3 writes for Python 2 as a call without arguments."""
    return b""


def _bytearray(content=b"", encoding="latin1"):
    """Return a copy; a number, which would be its length, is refused."""
    if isinstance(content, str):
        content = _encode(content, encoding)
    if not isinstance(content, bytes | bytearray):
        raise NotAdmittedError("refused: it contains a bytearray that is made of no bytes")
    return bytearray(content)


def _ordered(pairs=()):
    return fill(OrderedDict(), pairs)


CONTAINERS = {
    ("collections", "OrderedDict"): _ordered,
    # Bytes, as Python 3 writes them for Python 2.
    ("_codecs", "encode"): _encode,
}
# Python 3 and 2.
for _module in ("builtins", "__builtin__"):
    CONTAINERS |= {(_module, "bytes"): _no_bytes, (_module, "bytearray"): _bytearray}
ADMITTED = CONTAINERS | {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
# NumPy 2 and 1.
for _package in ("numpy._core", "numpy.core"):
    ADMITTED |= {
        (f"{_package}.multiarray", "_reconstruct"): _Array,
        (f"{_package}.multiarray", "scalar"): _scalar,
        (f"{_package}.numeric", "_frombuffer"): _from_buffer,
    }


def load(path: str | Path) -> Any:
    """Read a pickle of arrays, numbers, texts and containers of these.

    Byte strings of Python 2 become texts (latin1).
    Raises ValueError if the pickle calls anything else, naming it before it is called, and if the
    file is damaged.
    """
    with reading("a pickle"):
        return Machine(Path(path).read_bytes(), ADMITTED).run()
