"""Targets of the mask head, and pasting of its small masks into the image [Mask R-CNN §3].

The kernels are in kernels/triton and, in plain PyTorch, in kernels/eager.

Legend: N images, G ground-truth slots, V points of outlines, P outlines, R rois, D detections,
S side of the head's masks, H, W sides of the images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from accelerated.backend import kernels
from accelerated.boxes import check_finite
from accelerated.kernels.eager.masks import paste_matrices, windows_of
from accelerated.structures import Crop
from reference.config import MaskHead


def targets(
    masks: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    head: MaskHead,
    size: int,
    *,
    sizes: torch.Tensor,
    backend: str = "auto",
) -> torch.Tensor:
    """Average each RoI's ground-truth mask over the bins of a size x size grid (SPEC §10).

    masks        [N, G, H, ceil(W / 8)]  uint8, bit-packed
    image_index  [R]     int, row of `masks`; may hold anything where not valid
    matched      [R]     int, ground-truth slot of each RoI
    rois         [R, 4]  xyxy, pixels of the masks
    valid        [R]     bool
    sizes        [N, 2]  int, (h, w) of each image without its padding, where RoIAlign's border is
    Returns      [R, size, size] in [0, 1], float32 or as `rois`; exactly 0 or 1 unless the
                 targets are "soft"; 0 where not valid.
    """
    rois = rois.detach().to(torch.promote_types(rois.dtype, torch.float32))
    binary = head.target != "soft"
    return _targets(
        masks, image_index, matched, rois, valid, sizes, size, head.target_aligned, binary, backend
    )


@torch.library.custom_op(
    "maskrcnn::mask_targets",
    mutates_args=(),
    schema="(Tensor masks, Tensor image_index, Tensor matched, Tensor rois, Tensor valid,"
    " Tensor sizes, int size, bool aligned, bool binary, str backend) -> Tensor",
)
def _targets(masks, image_index, matched, rois, *arguments):
    *arguments, backend = arguments
    return kernels("masks", backend, rois).targets(masks, image_index, matched, rois, *arguments)


@_targets.register_fake
def _(masks, image_index, matched, rois, valid, sizes, size, *_):
    return rois.new_empty(len(rois), size, size)


def polygon_targets(
    points: torch.Tensor,
    rings: torch.Tensor,
    parts: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    size: int,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Draw targets from outlines instead of masks [detectron2's default].

    points   [N, V, 2]  float64, x, y in pixels: the outlines of an image, one after the other
    rings    [N, P + 1]  int64, outline p has points rings[p] to rings[p + 1]
    parts    [N, G + 1]  int64, the object in slot g has outlines parts[g] to parts[g + 1]
    image_index, matched, rois, valid  as in `targets`
    Returns  [R, size, size], 0 or 1, float32 or as `rois`; 0 where not valid, and for an object
             without outlines. RoIs narrower than 0.1 pixels count as that wide.

    Everything is computed in float64, which makes the result equal to the reference's.
    """
    rois = rois.detach().to(torch.promote_types(rois.dtype, torch.float32))
    return _polygon_targets(points, rings, parts, image_index, matched, rois, valid, size, backend)


@torch.library.custom_op(
    "maskrcnn::polygon_targets",
    mutates_args=(),
    schema="(Tensor points, Tensor rings, Tensor parts, Tensor image_index, Tensor matched,"
    " Tensor rois, Tensor valid, int size, str backend) -> Tensor",
)
def _polygon_targets(points, rings, parts, image_index, matched, rois, valid, size, backend):
    implementation = kernels("polygons", backend, rois)
    return implementation.targets(points, rings, parts, image_index, matched, rois, valid, size)


@_polygon_targets.register_fake
def _(points, rings, parts, image_index, matched, rois, valid, size, backend):
    return rois.new_empty(len(rois), size, size)


def paste_probabilities(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    *,
    convention: str,
) -> torch.Tensor:
    """Stretch each mask over its box in an image of zeros: [D, S, S], [D, 4] -> [D, H, W]."""
    masks, boxes = _checked(mask_probabilities, boxes, convention)
    a_y, a_x = paste_matrices(boxes, masks.shape[-1], height, width, convention)
    return a_y @ masks @ a_x.mT


def paste(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    *,
    convention: str,
    threshold: float = 0.5,
    backend: str = "auto",
) -> torch.Tensor:
    """Return the pixels of each object, where its pasted probability is at least `threshold`.

    mask_probabilities  [D, S, S]
    boxes               [D, 4]     xyxy, pixels of the image; may leave it
    convention          "torchvision" or "detectron2" (SPEC §11)
    Returns             [D, height, width] bool.

    Memory does not depend on the boxes. Raises ValueError for a non-finite box, naming its row, on
    the CPU.
    """
    masks, boxes = _checked(mask_probabilities.detach(), boxes.detach(), convention)
    implementation = kernels("masks", backend, boxes)
    return implementation.paste(masks, boxes, height, width, convention, float(threshold))


def paste_crops(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    *,
    convention: str,
    threshold: float = 0.5,
    backend: str = "auto",
) -> "Crops":
    """Return what `paste` returns, each mask only in the window of its box, on the CPU.

    Time and memory depend on the area of the boxes and not on that of the image. A mask is pasted
    when it is asked for, and again the next time. On a GPU, waits for the boxes and for the pixels.
    """
    masks, boxes = _checked(mask_probabilities.detach(), boxes.detach(), convention)
    paste_windows = kernels("masks", backend, boxes).paste_windows
    windows = windows_of(boxes, masks.shape[-1], height, width, threshold).cpu()

    def pasted(rows: slice) -> list[Crop]:
        of_rows = windows[rows]
        pixels = paste_windows(masks[rows], boxes[rows], of_rows, convention, float(threshold))
        return [
            Crop(crop.cpu(), top, left, (height, width))
            for (top, left, _, _), crop in zip(of_rows.tolist(), pixels, strict=True)
        ]

    sides = windows[:, 2:] - windows[:, :2]
    return Crops(pasted, sides.prod(1).tolist(), height * width)


class Crops(Sequence[Crop]):
    """Masks in their windows, of which no more exist at a time than fill the image once, or one.

    pasted  returns the crops of a slice of rows
    areas   of the windows, in pixels
    limit   area of the image
    """

    def __init__(self, pasted: Callable[[slice], list[Crop]], areas: list[int], limit: int):
        self.pasted, self.areas, self.limit = pasted, areas, limit

    def __len__(self) -> int:
        return len(self.areas)

    def __getitem__(self, index: Any) -> Any:
        rows = range(len(self))[index]
        if isinstance(rows, range):
            return [self[row] for row in rows]
        return self.pasted(slice(rows, rows + 1))[0]

    def __iter__(self) -> Iterator[Crop]:
        first = total = 0
        for row, area in enumerate(self.areas):
            if total + area > self.limit and row > first:
                yield from self.pasted(slice(first, row))
                first, total = row, 0
            total += area
        yield from self.pasted(slice(first, len(self))) if len(self) else ()


def _checked(mask_probabilities, boxes, convention):
    if convention not in ("torchvision", "detectron2"):
        raise ValueError(f"convention: expected torchvision or detectron2, got {convention!r}")
    check_finite(boxes, "boxes")
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    return mask_probabilities.to(boxes.dtype), boxes
