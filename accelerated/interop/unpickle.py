"""Reader of pickles that contain only arrays and containers; it executes nothing that they name.

A pickle is a program that may call anything it can import. Here it can call only what `ADMITTED`
lists, all of it written here. Not even NumPy's reconstruction runs: it trusts what a forged dtype
says about the bytes that follow.
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

# Booleans, integers, floats.
PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class NotAdmittedError(ValueError):
    """The pickle contains something that is neither an array nor a container."""


class _Dtype:
    """Stand-in for numpy.dtype: a plain number type and its byte order."""

    def __init__(self, code, *_):
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            arrays = f"arrays of type {code!r}"
            if code in ("O", "O8", "O4"):
                arrays = "object arrays, which may contain anything"
            raise NotAdmittedError(f"refused: it contains {arrays}; only numbers are admitted")
        self.code = code.lstrip("<>=|")
        self.order = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "="

    def array(self, raw):
        """Copy the numbers in `raw` to an array in this machine's byte order."""
        # Bytes of Python 2 arrive as text.
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        return np.frombuffer(raw, self.order + self.code).astype(self.code)


class _Array:
    """Stand-in for numpy.ndarray while the pickle is read."""

    def __init__(self, *_):
        # Set by __setstate__.
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise NotAdmittedError("refused: it contains an array without a dtype")
        self.value = dtype.array(raw).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype, raw):
    return dtype.array(raw)[0]


def _from_buffer(raw, dtype, shape, order):
    return dtype.array(raw).reshape(shape, order=order)


def _encode(text, encoding):
    if encoding != "latin1":
        raise NotAdmittedError(f"refused: it encodes text as {encoding!r}; only latin1 is admitted")
    return text.encode("latin1")


def _no_bytes():
    """Return empty bytes, which Python 3 writes for Python 2 as a call without arguments."""
    return b""


ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    # Bytes, as Python 3 writes them for Python 2.
    ("_codecs", "encode"): _encode,
}
# Python 3 and 2.
for _module in ("builtins", "__builtin__"):
    ADMITTED |= {(_module, "bytes"): _no_bytes, (_module, "bytearray"): bytearray}
# NumPy 2 and 1.
for _package in ("numpy._core", "numpy.core"):
    ADMITTED |= {
        (f"{_package}.multiarray", "_reconstruct"): _Array,
        (f"{_package}.multiarray", "scalar"): _scalar,
        (f"{_package}.numeric", "_frombuffer"): _from_buffer,
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise NotAdmittedError(
                f"refused: it would call {module}.{name}, which is neither an array nor a"
                " container. Nothing was executed. If you trust the file, load it with its own"
                " library and save {name: array} as .safetensors."
            )
        return ADMITTED[module, name]


def load(path: str | Path) -> Any:
    """Read a pickle of arrays, numbers, texts and containers of these.

    Byte strings of Python 2 become texts (latin1).
    Raises ValueError if the pickle calls anything else, naming it before it is called, and if the
    file is damaged.
    """
    with open(path, "rb") as file:
        try:
            return _finished(_Unpickler(file, encoding="latin1").load())
        except NotAdmittedError:
            raise
        # A damaged pickle may raise any error.
        except Exception as error:
            raise ValueError(
                f"not a pickle, or damaged ({type(error).__name__}: {error})"
            ) from error


def _finished(value):
    """Replace stand-ins by the arrays they have read."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("it contains an array without content")
        return value.value
    if isinstance(value, dict):
        return {name: _finished(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    return value
