"""Dataclasses from plain values: dictionaries, lists, numbers and strings, as JSON has them."""

import dataclasses
import types
from typing import Any, Literal, cast, get_args, get_origin


def build(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` as a field annotated with `annotation`, which may be a dataclass, stores it.

    Raises ValueError naming `path`, or the field below it that is unknown, missing or wrong.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is types.UnionType:
        return None if value is None else build(arguments[0], value, path)
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, dict):
            hints = {field.name: field.type for field in dataclasses.fields(annotation)}
            for key in value.keys() ^ hints.keys():
                raise ValueError(f"{path}.{key}: {'no such field' if key in value else 'missing'}")
            fields = {name: build(hints[name], value[name], f"{path}.{name}") for name in value}
            return cast(type, annotation)(**fields)
        expected = "an object"
    elif origin is Literal:
        if value in arguments:
            return value
        expected = f"one of {', '.join(arguments)}"
    elif origin is tuple:
        any_length = arguments[-1] is Ellipsis
        if isinstance(value, list | tuple) and (any_length or len(value) == len(arguments)):
            return tuple(build(arguments[0], item, path) for item in value)
        expected = "a list" if any_length else f"a list of {len(arguments)}"
    else:
        accepted = (int, float) if annotation is float else annotation
        # In Python, True is an int.
        if isinstance(value, accepted) and isinstance(value, bool) == (annotation is bool):
            return annotation(value)
        expected = annotation.__name__
    raise ValueError(f"{path}: expected {expected}, got {value!r}")
