"""Classes of a model and of a data set, compared by id and name."""

from collections.abc import Sequence

from accelerated.data.dataset import Dataset


def first_difference(known: Sequence[dict], wanted: Sequence[dict]) -> str | None:
    """Name the first category of `wanted` that is not in `known` by id and name; None if all are.

    The order does not matter, and `known` may have more.
    """
    names = {category["id"]: category["name"] for category in known}
    ids = {category["name"]: category["id"] for category in known}
    for category in wanted:
        number, name = category["id"], category["name"]
        if names.get(number) == name:
            continue
        if number in names:
            return f"its category {number} is {name!r}, the model's is {names[number]!r}"
        elsewhere = f", which is {ids[name]} for the model" if name in ids else ""
        return f"the model knows no category {number} ({name!r}{elsewhere})"
    return None


def label_ids(known: Sequence[dict] | None, dataset: Dataset) -> list[int | None]:
    """Return the data set's category id of each of a model's labels 1..K; None if it has none.

    known  the model's categories; None: those of the data set
    """
    if known is None:
        return list(dataset.category_ids)
    ids = set(dataset.category_ids)
    return [category["id"] if category["id"] in ids else None for category in known]
