"""Dataclasses from plain values: dictionaries, lists, numbers and strings, as JSON has them."""

import dataclasses
import types
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
    # In Python, True is an int.
    fits = isinstance(value, accepted) and isinstance(value, bool) == (annotation is bool)
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
    expected = "a list" if any_length else f"a list of {len(arguments)}"
    fits = isinstance(value, list | tuple) and (any_length or len(value) == len(arguments))
    _expect(fits, value, expected, path)
    return tuple(build(arguments[0], item, path) for item in value)


def _expect(fits, value, expected, path):
    """Return `value` if it fits."""
    if not fits:
        raise ValueError(f"{path}: expected {expected}, got {value!r}")
    return value
