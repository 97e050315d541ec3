"""Our operators under torchvision's models, and under all that call torchvision's functions.

torchvision and detectron2 import functions by name, so that one function is looked up in many
modules. For the time of a `with`, every name of a loaded module that stands for one of them stands
for ours instead.
"""

import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch

from accelerated import backend as backends
from accelerated import masks as mask_operators
from accelerated import nms as nms_operators
from accelerated import roi_align as align_operators
from accelerated import roi_pool as pool_operators

# (module, function) in which torchvision looks a function up, and the path to it from the module.
# Names that moved are an error: otherwise a model would silently keep torchvision's function.
LOOKUPS = (
    ("torchvision.ops.roi_align", "RoIAlign.forward", "roi_align"),
    ("torchvision.ops.roi_pool", "RoIPool.forward", "roi_pool"),
    ("torchvision.ops.poolers", "MultiScaleRoIAlign.forward", "_multiscale_roi_align"),
    ("torchvision.ops.poolers", "_multiscale_roi_align", "roi_align"),
    ("torchvision.ops.boxes", "_batched_nms_vanilla", "nms"),
    (
        "torchvision.models.detection.rpn",
        "RegionProposalNetwork.filter_proposals",
        "box_ops.batched_nms",
    ),
    (
        "torchvision.models.detection.roi_heads",
        "RoIHeads.postprocess_detections",
        "box_ops.batched_nms",
    ),
    ("torchvision.models.detection.roi_heads", "project_masks_on_boxes", "roi_align"),
    (
        "torchvision.models.detection.transform",
        "GeneralizedRCNNTransform.postprocess",
        "paste_masks_in_image",
    ),
)

# Held while names change, not while the operators run.
_lock = threading.Lock()
# A list [backend] for each `with` that is open in any thread, the innermost last.
_open: list[list[str]] = []
# torchvision's functions, while at least one `with` is open.
_originals: dict[str, Callable] = {}


@contextmanager
def use_our_operators(backend: str = "auto") -> Iterator[None]:
    """Run torchvision's RoIAlign, RoIPool, NMS and mask pasting by our operators in a `with`.

        model = torchvision.models.detection.maskrcnn_resnet50_fpn()
        with use_our_operators():
            losses = model(images, targets)

    backend  "auto", "torch" or "triton"

    Replaced are torchvision.ops.roi_align, roi_pool, nms and batched_nms, the classes RoIAlign,
    RoIPool and MultiScaleRoIAlign (all levels in one launch), and the paste_masks_in_image of its
    detection models, wherever a loaded module holds one of these functions. detectron2 calls them
    in its layers ROIAlign, nms and batched_nms. Results and gradients are equal, up to rounding;
    bfloat16 works, repetition gives the same bits, and pooled features are channels-last where
    the features are. Three things differ: with aligned=True an RoI of negative side gives 0;
    groups of `batched_nms` are kept apart without shifting, and thus rounding, their boxes; and on
    a CPU boxes or scores that are not finite raise ValueError.

    The replacement holds for all threads until the last `with` is left, also by an exception; of
    nested ones, the innermost chooses the backend. Not reached are scripted models, and functions
    that were stored elsewhere than in a module, such as in a functools.partial.

    Raises ImportError without torchvision, and RuntimeError for a version of torchvision that
    looks its functions up elsewhere, or for a backend that cannot run.
    """
    if backend not in ("auto", *backends.FOLDERS):
        raise ValueError(f"backend: expected 'auto', 'torch' or 'triton', got {backend!r}")
    entry = [backend]
    with _lock:
        if not _open:
            _originals.update(_find())
            _replace({_originals[name]: ours for name, ours in _OURS.items()})
        _open.append(entry)
    try:
        yield
    finally:
        with _lock:
            # By identity: entries of other threads may be equal.
            _open[:] = [other for other in _open if other is not entry]
            if not _open:
                # Names that were imported meanwhile are found, too.
                _replace({ours: _originals[name] for name, ours in _OURS.items()})
                _originals.clear()


def roi_align(
    input: torch.Tensor,
    boxes: torch.Tensor | Sequence[torch.Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> torch.Tensor:
    """Stand for torchvision.ops.roi_align."""
    rois, image_index = _rows(boxes)
    return align_operators.roi_align(
        input,
        rois,
        image_index,
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=max(sampling_ratio, 0),
        aligned=aligned,
        backend=_backend(),
    )


def roi_pool(
    input: torch.Tensor,
    boxes: torch.Tensor | Sequence[torch.Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Stand for torchvision.ops.roi_pool."""
    rois, image_index = _rows(boxes)
    return pool_operators.roi_pool(
        input,
        rois,
        image_index,
        output_size=output_size,
        spatial_scale=spatial_scale,
        backend=_backend(),
    )


def _multiscale_roi_align(
    x_filtered: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    output_size: Sequence[int],
    sampling_ratio: int,
    scales: Sequence[float] | None,
    mapper: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None,
) -> torch.Tensor:
    """Stand for the function under torchvision.ops.MultiScaleRoIAlign."""
    if scales is None or mapper is None:
        raise ValueError("scales and mapper must not be None")
    rois, image_index = _rows(boxes)
    # Autocast may give the levels different dtypes.
    dtype = reduce(torch.promote_types, (x.dtype for x in x_filtered))
    pooled = align_operators.multilevel(
        [x.to(dtype) for x in x_filtered],
        rois,
        image_index,
        mapper(boxes) if len(x_filtered) > 1 else torch.zeros_like(image_index),
        scales=scales,
        output_size=output_size,
        sampling_ratio=max(sampling_ratio, 0),
        aligned=False,
        backend=_backend(),
    )
    return pooled.to(x_filtered[0].dtype)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Stand for torchvision.ops.nms."""
    return nms_operators.nms(boxes, scores, iou_threshold, _backend())


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Stand for torchvision.ops.batched_nms."""
    return nms_operators.batched_nms(boxes, scores, idxs, iou_threshold, _backend())


def paste_masks_in_image(
    masks: torch.Tensor, boxes: torch.Tensor, img_shape: Sequence[int], padding: int = 1
) -> torch.Tensor:
    """Stand for torchvision's pasting: probabilities [D, 1, S, S] -> [D, 1, H, W]."""
    if padding != 1:
        raise ValueError(f"padding: expected 1, as in torchvision's models, got {padding}")
    height, width = (int(side) for side in img_shape)
    # As in torchvision, products are not rounded to what autocast computes in.
    with torch.autocast(boxes.device.type, enabled=False):
        pasted = mask_operators.paste_probabilities(
            masks[:, 0], boxes, height, width, convention="torchvision"
        )
    return pasted[:, None].to(masks.dtype)


_OURS = {
    function.__name__: function
    for function in (
        roi_align,
        roi_pool,
        _multiscale_roi_align,
        nms,
        batched_nms,
        paste_masks_in_image,
    )
}


def _backend():
    """Return the backend of the innermost `with`; of a function that outlived it, the default."""
    entries = _open[-1:]
    return entries[0][0] if entries else "auto"


def _rows(boxes):
    """Split boxes [R, 5] of (image, xyxy), or a list of [R_i, 4], into rois and image_index."""
    if isinstance(boxes, torch.Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes: expected [R, 5] or a list of [R, 4], got {[*boxes.shape]}")
        return boxes[:, 1:], boxes[:, 0].long()
    index = [rows.new_full((len(rows),), i, dtype=torch.int64) for i, rows in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(index)


def _find() -> dict[str, Callable]:
    """Return torchvision's functions by name; raise if it does not look them up as we expect."""
    try:
        version = importlib.import_module("torchvision").__version__
        modules = {name: importlib.import_module(name) for name, _, _ in LOOKUPS}
    except ImportError as error:
        raise ImportError(
            f"use_our_operators needs torchvision, of a version made for PyTorch"
            f" {torch.__version__}: pip install torchvision"
        ) from error
    found: dict[str, Callable] = {}
    for module, caller, path in LOOKUPS:
        name = path.split(".")[-1]
        if not _looks_up(modules[module], caller, path, found.setdefault):
            raise RuntimeError(
                f"torchvision {version}: {module}.{caller} does not call {name} as in the"
                " versions 0.26 to 0.29; nothing was replaced"
            )
    return found


def _looks_up(
    module: ModuleType, caller: str, path: str, remember: Callable[[str, Any], Any]
) -> bool:
    """Tell whether a function of `module` calls what stands at `path`, always the same function."""
    try:
        names = inspect.unwrap(attrgetter(caller)(module)).__code__.co_names
        function = attrgetter(path)(module)
        parameters = [*inspect.signature(function).parameters]
    except (AttributeError, TypeError, ValueError):
        return False
    name = path.split(".")[-1]
    return (
        set(path.split(".")) <= set(names)
        and parameters == [*inspect.signature(_OURS[name]).parameters]
        and remember(name, function) is function
    )


def _replace(new: dict[Callable, Callable]) -> None:
    """Let every name of a loaded module that stands for a key of `new` stand for its value."""
    by_id = {id(old): function for old, function in new.items()}
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict) or names is globals():
            continue
        for name, value in list(names.items()):
            if id(value) in by_id:
                names[name] = by_id[id(value)]
