"""The options of a run, which are kept in RUN/run.json for `--resume`."""

import json
import os
from pathlib import Path
from typing import Any

import typer

# Options that are not kept: every start of a run has its own.
ANEW = ("output", "resume", "resume_from", "keep_schedule", "epochs")


def take_from_run(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Make the options in RUN/run.json the defaults: the callback of --output and --resume.

    Both are eager, so that this precedes the other options in any order.
    """
    given = context.params | {parameter.name: value}
    path = Path(given.get("output") or "") / "run.json"
    if given.get("resume") and path.is_file() and not context.resilient_parsing:
        try:
            context.default_map = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to do without") from None
    return value


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether the option was typed, and is neither a default nor from run.json."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def to_keep(context: typer.Context, **resolved: Any) -> dict[str, Any]:
    """Return the options as JSON, with the `resolved` ones instead of what was typed.

    Paths become absolute, so that the run can be resumed from another folder.
    """
    options = {name: value for name, value in context.params.items() if name not in ANEW}
    return {name: _plain(name, value) for name, value in (options | resolved).items()}


def _plain(name, value):
    # Weights may also be a name.
    is_path = isinstance(value, Path) or (name == "weights" and value and os.path.exists(value))
    return os.path.abspath(value) if is_path else value
