"""Names by tables of patterns."""

import re


def rename(name, table):
    """`name` by the first row (pattern, replacement as in re.sub) of `table` that matches the whole of it; None where none does."""
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return replacement(match) if callable(replacement) else match.expand(replacement)
    return None
