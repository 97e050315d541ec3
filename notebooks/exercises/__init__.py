"""The exercises' checkers, a module per notebook: `check(answer)` says what it thinks of an answer.

The reply is "not solved yet", "right", or "wrong: " with a hint that names the mistake.
"""

from collections.abc import Callable
from typing import Any

NOT_SOLVED = "not solved yet"
RIGHT = "right"


def wrong(hint: str) -> str:
    """Return the reply to a wrong answer."""
    return f"wrong: {hint}"


def attempt(function: Callable, *arguments: Any, **keywords: Any) -> tuple[Any, str | None]:
    """Call a student's function: (its result, None), or (None, the reply) where that fails."""
    try:
        result = function(*arguments, **keywords)
    except Exception as problem:
        return None, wrong(f"the function raises {type(problem).__name__}: {problem}")
    return result, NOT_SOLVED if result is None else None
