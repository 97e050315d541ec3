"""The fields of the configuration for `--set help`: their values, and what they mean.

The meanings are the lines of the docstrings in reference/config.py: names, two blanks, a text.
"""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from reference.config import Config, override, preset


def list_and_exit(context: typer.Context, changes: list[str] | None) -> list[str] | None:
    """Print the fields of the configuration and exit if one of the changes is "help"."""
    if changes and "help" in changes and not context.resilient_parsing:
        name = context.params.get("preset") or "small"
        config = override(preset(name), *(change for change in changes if change != "help"))
        print(f"The fields that --set changes, with their values in the preset {name}.")
        print(*listing(config), sep="\n")
        raise typer.Exit()
    return changes


def listing(config: Config) -> Iterator[str]:
    """Yield the lines of the list: a part of the configuration, its fields, and their meanings."""
    yield from _part(config, "")


def _part(part, prefix):
    """Yield the lines of one dataclass, and of those in it under the names of their fields."""
    title, *lines = inspect.cleandoc(type(part).__doc__ or "").splitlines()
    yield from ("", f"{prefix.rstrip('.') or 'Configuration'}: {title}")
    for names, meaning in _rows(lines):
        own = [name for name in names if not is_dataclass(getattr(part, name))]
        if own:
            yield from (f"  {prefix}{name}={_value(part, name)}" for name in own)
            yield f"      {meaning}"
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _part(value, f"{prefix}{field.name}.")


def _rows(lines) -> Iterator[tuple[list[str], str]]:
    """Yield (names, meaning) of the rows of a docstring; further lines of a row are indented."""
    rows: list[str] = []
    for line in lines:
        if line.startswith(" "):
            rows[-1] += f" {line.strip()}"
        else:
            rows.append(line)
    for row in rows:
        match = re.fullmatch(r"(\w+(?:, \w+)*)  +(.+)", row)
        if match:
            yield match[1].split(", "), match[2]


def _value(part: Any, name: str) -> str:
    """Write the value as --set reads it, and the other values that it may have."""
    value, kind = getattr(part, name), get_type_hints(type(part))[name]
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    others = [str(choice) for choice in choices if choice != value]
    return f"{text} (or {', '.join(others)})" if others else text
