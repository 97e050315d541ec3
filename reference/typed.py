"""Dataclasses from plain values: dictionaries, lists, numbers and strings, as JSON has them."""

import dataclasses
import json
import types
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin


def build(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` as a field annotated with `annotation`, which may be a dataclass, stores it.

    Raises ValueError naming `path`, or the field below it that is unknown, missing or wrong.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, value, path)
    if origin is types.UnionType:
        return None if value is None else build(arguments[0], value, path)
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin is Literal:
        return _expect(value in arguments, value, f"one of {', '.join(arguments)}", path)
    accepted = (int, float) if annotation is float else annotation
    # In Python, True is an int, and NaN a float; some ints are beyond all floats.
    fits = isinstance(value, accepted) and isinstance(value, bool) == (annotation is bool)
    fits = fits and (accepted is annotation or abs(value) < 2**1024)
    return annotation(_expect(fits, value, annotation.__name__, path))


def _dataclass(cls: Any, value, path):
    _expect(isinstance(value, dict), value, "an object", path)
    hints = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in value.keys() ^ hints.keys():
        raise ValueError(f"{path}.{name}: {'no such field' if name in value else 'missing'}")
    return cls(**{name: build(hints[name], value[name], f"{path}.{name}") for name in value})


def _tuple(arguments, value, path):
    """Build every item like the first of the annotation; a final Ellipsis admits any length."""
    any_length = arguments[-1] is Ellipsis
    fits = isinstance(value, list | tuple) and (any_length or len(value) == len(arguments))
    _expect(fits, value, "a list" if any_length else f"a list of {len(arguments)}", path)
    return tuple(build(arguments[0], item, path) for item in value)


def _expect(fits, value, expected, path):
    """Return `value` if it fits."""
    if not fits:
        raise ValueError(f"{path}: expected {expected}, got {value!r}")
    return value


def change(values: dict, assignment: str) -> tuple[dict, str]:
    """Return FIELD=VALUE (JSON or a bare word) as dictionaries, and a text of the present value.

    Raises ValueError for a field that the nested `values` lack, suggesting one.
    """
    path, _, text = assignment.partition("=")
    path, known = path.strip(), dict(leaves(values))
    if not text:
        raise ValueError(f"{assignment!r}: expected FIELD=VALUE, for example rpn.nms_iou=0.6")
    if not any(f"{k}.".startswith(f"{path}.") or path.startswith(f"{k}.") for k in known):
        raise ValueError(f"no such field: {path}{did_you_mean(path, known)}")
    try:
        value: Any = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for name in reversed(path.split(".")):
        value = {name: value}
    return value, f"; at present it is {known[path]!r}" if path in known else ""


def did_you_mean(path: str, known: dict) -> str:
    """Return "; did you mean ..?" with those of `known` that `path` resembles most, or nothing."""
    name = {"lr": "learning_rate", "wd": "weight_decay"}.get(path.split(".")[-1], path)
    found = [k for k in known if k.endswith(f".{name}")] or get_close_matches(path, known, 1)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value), such as ("rpn.nms_iou", 0.7), of what nested dictionaries hold."""
    for k, v in values.items():
        yield from leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else [(prefix + k, v)]
