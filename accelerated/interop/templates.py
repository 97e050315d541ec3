"""Tables of tensor names that are read in both directions.

A row is a pair of templates, our name and theirs:

    ("fpn.lateral{l}.{part}", "backbone.fpn.inner_blocks.{l-2}.0.{part}")

`{part}` is a word such as weight or running_mean, `{rest}` is any text, and every other field is a
number. `{l-2}` stands for the number `l` of the other template minus 2.
"""

import re

FIELD = re.compile(r"\{([a-z]+)([+-]\d+)?\}")
PATTERNS = {"part": r"\w+", "rest": r".+"}


class Template:
    """A name with fields: reads their values from a name, and writes a name from values."""

    def __init__(self, text: str):
        # The pieces alternate: a literal text, the name of a field, its offset.
        pieces = FIELD.split(text)
        self.literals = pieces[0::3]
        self.fields = pieces[1::3]
        self.offsets = [int(offset or 0) for offset in pieces[2::3]]
        pattern = re.escape(self.literals[0])
        for field, literal in zip(self.fields, self.literals[1:], strict=True):
            pattern += f"({PATTERNS.get(field, '[0-9]+')})" + re.escape(literal)
        self.pattern = re.compile(pattern)

    def read(self, name: str) -> dict[str, str] | None:
        """Return {field: value}, or None if the template does not match the whole name."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        values = {}
        for field, offset, text in zip(self.fields, self.offsets, match.groups(), strict=True):
            values[field] = str(int(text) - offset) if offset else text
        return values

    def write(self, values: dict[str, str]) -> str:
        """Return the name with these values of the fields."""
        name = self.literals[0]
        for field, offset, literal in zip(
            self.fields, self.offsets, self.literals[1:], strict=True
        ):
            name += str(int(values[field]) + offset) if offset else values[field]
            name += literal
        return name


class Names:
    """A table of names; the first row that matches a name translates it."""

    def __init__(self, *rows: tuple[str, str]):
        self.rows = [(Template(ours), Template(theirs)) for ours, theirs in rows]

    def ours(self, theirs: str) -> str | None:
        """Translate their name to ours; None if no row matches."""
        return _translate(theirs, [(source, target) for target, source in self.rows])

    def theirs(self, ours: str) -> str | None:
        """Translate our name to theirs; None if no row matches."""
        return _translate(ours, self.rows)


def _translate(name, rows):
    for source, target in rows:
        values = source.read(name)
        if values is not None:
            return target.write(values)
    return None
