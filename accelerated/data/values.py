"""Values of a JSON file, which may be of any type."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

# Code, severity and message.
Remark = tuple[str, str, str]


class Invalid(Exception):
    """Ends the reading of an item; `problem` holds (code, severity, message)."""

    def __init__(self, code: str, message: str, severity: str = "reject"):
        self.problem: Remark = code, severity, message


def whole(value: Any) -> int | None:
    """Convert an int, or a float without fraction, to int; return None for anything else."""
    if not finite(value) or value != int(value):
        return None
    return int(value)


def plain(value: Any) -> int | str | float | None:
    """Convert an id to something that can be a key and be printed."""
    number = whole(value)
    if number is not None:
        return number
    return value if isinstance(value, str | float | None) else short(value)


def finite(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number, not a bool."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        # An int beyond 1e308.
        return False


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is an int or a float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_point(value: Any) -> bool:
    """Tell whether a value is a list of two finite numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(finite, value))


def short(value: Any) -> str:
    """Return the value as text for messages, cut to 60 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def objects(value: Any, fields: Mapping[str, type | tuple[type, ...]]) -> list[dict]:
    """Return a list of objects that have these fields, each of its types.

    Raises ValueError, which names the first that has not.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {short(value)}")
    for entry in value:
        for name, types in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), types):
                raise ValueError(f"{name!r} is missing or of another type in {short(entry)}")
    return value
