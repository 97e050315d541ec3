"""Pickles of arrays and containers, read without running anything that they name.

A pickle is a program that may call whatever it can import. Here it can reach only what stands in `ADMITTED`, all of it stand-ins of
ours: not even NumPy's own reconstruction runs, which believes what a forged dtype says about the bytes that follow.
"""

import pickle
import re
from collections import OrderedDict

import numpy as np

PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")  # booleans, integers, floats


class NotAdmittedError(ValueError):
    """The pickle asks for something that is neither an array nor a container."""


class _Dtype:
    def __init__(self, code, *_):
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            kind = (
                "object arrays, which could hold anything"
                if code in ("O", "O8", "O4")
                else f"arrays of type {code!r}"
            )
            raise NotAdmittedError(f"it holds {kind}; only plain numbers are admitted")
        self.code = code.lstrip("<>=|")
        self.order = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "="

    def array(self, raw):
        """The numbers in `raw`, in this machine's byte order and in memory of their own."""
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # str: bytes of Python 2
        return np.frombuffer(raw, self.order + self.code).astype(self.code)


class _Array:
    def __init__(self, *_):
        self.value = None  # until its state comes

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise NotAdmittedError("it holds an array without a dtype")
        self.value = dtype.array(raw).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype, raw):
    return dtype.array(raw)[0]


def _from_buffer(raw, dtype, shape, order):
    return dtype.array(raw).reshape(shape, order=order)


def _encode(text, encoding):
    if encoding != "latin1":
        raise NotAdmittedError(f"it encodes text as {encoding!r}; only latin1 is admitted")
    return text.encode("latin1")


ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # bytes, as Python 3 writes them for Python 2
}
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    ADMITTED |= {
        (_module, "bytes"): lambda: b"",  # as Python 3 writes no bytes at all for Python 2
        (_module, "bytearray"): bytearray,
    }
for _package in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ADMITTED |= {
        (f"{_package}.multiarray", "_reconstruct"): _Array,
        (f"{_package}.multiarray", "scalar"): _scalar,
        (f"{_package}.numeric", "_frombuffer"): _from_buffer,
    }


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise NotAdmittedError(
                f"refused, for it would call {module}.{name}, which is neither an array nor a container. Nothing was run. If you trust its"
                " origin, read it there and save {name: array} as .safetensors"
            )
        return ADMITTED[module, name]


def load(path):
    """What the pickle in the file `path` holds: arrays, numbers, texts and containers of these.

    Pickles of Python 2 too: their byte strings become texts (latin1). Raises ValueError for anything else that the pickle asks for, by
    name and before it is run, and for damaged files.
    """
    with open(path, "rb") as file:
        try:
            return _finished(_Unpickler(file, encoding="latin1").load())
        except NotAdmittedError:
            raise
        except Exception as error:  # a damaged pickle can make any of them
            raise ValueError(f"damaged, or no pickle ({type(error).__name__}: {error})") from error


def _finished(value):
    """`value` with the arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without content")
        return value.value
    if isinstance(value, dict):
        return {name: _finished(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(item) for item in value)
    return value
