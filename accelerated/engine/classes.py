"""Classes of a model and of a data set, compared by id and name; classes of two models, by name."""

from collections.abc import Sequence

import torch

from accelerated.data.dataset import Dataset
from accelerated.interop.names import is_unused
from accelerated.labels import Layout, class_layout, delta_layout, mask_layout
from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config


def of_model(model: MaskRCNN) -> list[dict]:
    """Return the categories of a model; numbered ones if nobody named its classes."""
    numbered = [{"id": k, "name": name} for k, name in enumerate(model.class_names, start=1)]
    return model.categories or numbered


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
        return f"the model has no category {number} ({name!r}{elsewhere})"
    return None


def share_only_ids(known: Sequence[dict], wanted: Sequence[dict]) -> bool:
    """Tell whether all ids of `wanted`, but none of its names, are in `known`."""
    ids, names = ({category[key] for category in known} for key in ("id", "name"))
    return all(category["id"] in ids and category["name"] not in names for category in wanted)


def label_ids(known: Sequence[dict], dataset: Dataset) -> list[int | None]:
    """Return the category id of each of a model's labels 1..K; None where the data set lacks it.

    known  the model's categories
    """
    ids = set(dataset.category_ids)
    return [category["id"] if category["id"] in ids else None for category in known]


def layouts(config: Config) -> dict[str, Layout]:
    """Return the layout of the outputs of each layer whose width depends on the classes."""
    layers = {"box_head.class_logits": class_layout(config)}
    layers["box_head.box_deltas"] = delta_layout(config)
    if config.mask_head.kind != "none":
        layers["mask_head.logits"] = mask_layout(config)
    return layers


def shared(theirs: Sequence[dict] | None, ours: Sequence[dict] | None) -> list[tuple[int, int]]:
    """Return (their label, our label) of the classes of the same name, whatever its case."""
    named = [(c["name"].strip().casefold(), k) for k, c in enumerate(theirs or [], start=1)]
    labels = dict(pair for pair, c in zip(named, theirs or [], strict=True) if not is_unused(c))
    found = [(labels.get(c["name"].strip().casefold()), k) for k, c in enumerate(ours or [], 1)]
    return [(their, our) for their, our in found if their is not None]


def copy_rows(
    target: torch.Tensor,
    source: torch.Tensor,
    ours: Layout,
    theirs: Layout,
    labels: Sequence[tuple[int, int]],
) -> bool:
    """Copy the rows of classes from a layer of one model to that of another, in place.

    target, source  [columns * rows per column, ...]: weight or bias
    labels          (their label, our label); the background goes along if there is any
    Returns whether every class of the target has been copied.
    """
    into, rows = (
        tensor.unflatten(0, (layout.columns, -1))
        for tensor, layout in ((target, ours), (source, theirs))
    )
    if into.shape[1:] != rows.shape[1:]:
        raise ValueError(f"{list(source.shape)}, the model's {list(target.shape)}")
    if ours.agnostic or theirs.agnostic:
        # One row for all classes means the same for any classes.
        if ours != theirs:
            return False
        target.copy_(source)
        return True
    columns = [(ours.first + k - 1, theirs.first + their - 1) for their, k in labels]
    if columns and ours.background is not None and theirs.background is not None:
        columns.append((ours.background, theirs.background))
    for column, their_column in columns:
        into[column] = rows[their_column].to(into)
    return len(labels) == ours.classes
