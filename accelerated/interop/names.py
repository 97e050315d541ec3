"""Names of a model's classes, read from a file.

One name a line; a JSON list; {"number": "name"}; a COCO json; or a YAML list or mapping of names,
such as the `names:` of a data.yaml.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from accelerated.data.text_files import parse_json, parse_yaml, read_lines
from accelerated.data.values import short

BACKGROUND = ("__background__", "background")


def unused(label: int) -> str:
    """Name a label that stands for no class."""
    return f"N/A {label}"


def is_unused(category: dict) -> bool:
    """Tell whether a category stands for no class."""
    return category["name"] == unused(category["id"])


def read(path: str | Path, count: int) -> list[dict]:
    """Read {"id", "name"} of the labels 1..count.

    Categories of a COCO json stand in the order of their ids, unless they are fewer than `count`
    and all their ids fit: then a label is an id, as in torchvision's models. A background at the
    top of a list is left out.
    Raises ValueError if the file has another number of names.
    """
    path = Path(path)
    try:
        content = _content(path)
        named = sorted(_named(content))
    except (ValueError, TypeError, KeyError) as error:
        expected = "one a line, a list in JSON or YAML, or a COCO file"
        raise ValueError(f"{path}: no list of class names ({error}); expected {expected}") from None
    repeated = [name for name, times in Counter(name for _, name in named).items() if times > 1]
    if set(repeated) - {"N/A"}:
        raise ValueError(f"{path}: {short(repeated[0])} is the name of several classes")
    sparse = isinstance(content, dict) and "categories" in content
    if sparse and named and len(named) < count and named[0][0] > 0 and named[-1][0] <= count:
        names = dict(named)
        return [{"id": k, "name": names.get(k, unused(k))} for k in range(1, count + 1)]
    if len(named) == count + 1 and named[0][1].lower() in BACKGROUND:
        named = named[1:]
    if len(named) != count:
        raise ValueError(f"{path} has {len(named)} names, but the model has {count} classes")
    # Only a COCO json has ids; elsewhere the order is the label's.
    ids = [number for number, _ in named] if sparse else range(1, count + 1)
    return [
        {"id": k, "name": unused(k) if name == "N/A" else name}
        for k, (_, name) in zip(ids, named, strict=True)
    ]


def _content(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        return parse_json(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        content = parse_yaml(path)
        return content["names"] if isinstance(content, dict) and "names" in content else content
    return [line.strip() for line in read_lines(path) if line.strip()]


def _named(content) -> list[tuple[int, str]]:
    """Turn what a file holds into (number, name)."""
    if isinstance(content, dict) and "categories" in content:
        return [(int(category["id"]), str(category["name"])) for category in content["categories"]]
    if isinstance(content, dict):
        return [(int(number), str(name)) for number, name in content.items()]
    return [(k, str(name)) for k, name in enumerate(content)]
