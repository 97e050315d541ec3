"""Ground-truth masks -> targets of the mask head, and the head's small masks -> masks of the image.

N images, G ground-truth slots, R RoIs, D detections, S side of the head's masks, H and W sides of the images. Both directions are
separable, as RoIAlign is: `out = A_y M A_xᵀ`, with interpolation matrices per box, a chunk of boxes at a time.
"""

import torch

from accelerated import backend as backends
from accelerated.boxes import check_finite

CHUNK_PIXELS = 2**26  # unpacked pixels held at a time on the way to targets
TAPS = 6  # samples lie more than half a pixel apart, so at most four touch a pixel; one more at either end for rounding


def targets(masks, image_index, matched, rois, valid, config, size, *, sizes, backend="auto"):
    """What the mask head should put out for each RoI: its ground-truth mask, averaged over the bins of a size x size grid (SPEC §10).

    masks        [N, G, H, ceil(W / 8)]  uint8, bit-packed
    image_index  [R]     int, row of `masks`; anything where not valid
    matched      [R]     int, ground-truth slot of each RoI
    rois         [R, 4]  xyxy, pixels of the masks
    valid        [R]     bool
    config       config.MaskHead
    sizes        [N, 2]  int, (h, w) of each image without its padding: where the border rule of RoIAlign applies
    Returns      [R, size, size] in [0, 1], float32 or as `rois`; exactly 0 or 1 for "binary" targets; 0 where not valid.
    """
    rois = rois.detach().to(torch.promote_types(rois.dtype, torch.float32))
    return _targets(
        masks,
        image_index,
        matched,
        rois,
        valid,
        sizes,
        size,
        config.target_aligned,
        config.target == "binary",
        backend,
    )


@torch.library.custom_op("maskrcnn::mask_targets", mutates_args=())
def _targets(
    masks: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    sizes: torch.Tensor,
    size: int,
    aligned: bool,
    binary: bool,
    backend: str,
) -> torch.Tensor:
    if backends.resolve(backend, rois) == "triton":
        from accelerated.kernels.triton import masks as kernels  # Triton may be absent

        return kernels.targets(
            masks, image_index, matched, rois, valid, sizes, size, aligned, binary
        )
    image_index, matched = image_index.clamp(min=0), matched.clamp(min=0)
    limit = sizes[image_index].to(rois.dtype)
    height, width = masks.shape[2], masks.shape[3] * 8
    out = rois.new_zeros(len(rois), size, size)
    step = max(CHUNK_PIXELS // (height * width), 1)
    with torch.autocast(rois.device.type, enabled=False):
        for part in (slice(start, start + step) for start in range(0, len(rois), step)):
            pixels = unpack(masks[image_index[part], matched[part]]).to(rois.dtype)
            x1, y1, x2, y2 = rois[part].unbind(1)
            a_y = sampling_matrix(y1, y2, size, height, limit[part, 0], aligned)
            a_x = sampling_matrix(x1, x2, size, width, limit[part, 1], aligned)
            out[part] = a_y @ pixels @ a_x.mT
    out = (out >= 0.5).to(out.dtype) if binary else out
    return torch.where(valid[:, None, None], out, 0)


@_targets.register_fake
def _(masks, image_index, matched, rois, valid, sizes, size, aligned, binary, backend):
    return rois.new_empty(len(rois), size, size)


def unpack(packed):
    """Bits [..., B] uint8 -> [..., 8 B] uint8 of 0 and 1, the highest bit first (numpy.unpackbits)."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)


def sampling_matrix(low, high, bins, length, limit, aligned):
    """Matrices [R, bins, length] that average RoIAlign's samples along one axis, adaptively ceil(bin size) of them per bin (SPEC §1).

    low, high [R] ends of the RoIs; limit [R] <= length: pixels that the mask really has. No loop over samples: each pixel asks for
    the few that may touch it.
    """
    low = low - 0.5 if aligned else low
    extent = high - 0.5 - low if aligned else (high - low).clamp(min=1)
    bin_size, limit = (extent / bins)[:, None, None], limit[:, None, None]
    count = (extent / bins).ceil().clamp(min=0)[:, None, None]
    samples = count.clamp(min=1)
    start = (
        low[:, None, None]
        + torch.arange(bins, dtype=low.dtype, device=low.device)[:, None] * bin_size
    )
    pixel = torch.arange(length, dtype=low.dtype, device=low.device)
    first = ((pixel - 1 - start) / (bin_size / samples) - 0.5).floor().clamp(min=0)
    out = torch.zeros_like(first)
    for sample in (first + tap for tap in range(TAPS)):
        position = start + (sample + 0.5) * bin_size / samples
        inside = (sample < count) & (position >= -1) & (position <= limit)
        weight = 1 - (position.clamp(min=0).minimum(limit - 1) - pixel).abs()
        out += torch.where(inside, weight.clamp(min=0), 0)
    return out / samples


def paste_matrix(low, high, size, length, convention):
    """Interpolation matrices [D, length, size] that spread a mask's `size` cells from `low` to `high` over `length` pixels (SPEC §11).

    "detectron2": bilinear at each pixel's centre, zero outside the mask.
    "torchvision": the mask grows by a border of one zero cell, its box accordingly and then truncated to whole pixels, ends included.
    """
    pixel = torch.arange(length, dtype=low.dtype, device=low.device)
    low, high = low[:, None], high[:, None]
    if convention == "detectron2":
        inside = high > low
        position = (pixel + 0.5 - low) / torch.where(inside, high - low, 1) * size - 0.5
    else:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((size + 2) / size)
        low, high = (center - half).trunc(), (center + half).trunc()
        inside = (pixel >= low) & (pixel <= high)
        position = (size + 2) / (high - low + 1).clamp(min=1) * (pixel - low + 0.5) - 0.5
        position = position.clamp(0, size + 1) - 1  # cell -1 and cell `size` are the zero border
    cells = torch.arange(size, dtype=low.dtype, device=low.device)
    return (1 - (position[..., None] - cells).abs()).clamp(min=0) * inside[..., None]


def paste_probabilities(mask_probabilities, boxes, height, width, *, convention):
    """Each mask stretched over its box in an otherwise zero image: [D, S, S], [D, 4] -> [D, height, width] floats."""
    mask_probabilities, boxes = _checked(mask_probabilities, boxes, convention)
    a_y, a_x = _paste_matrices(boxes, mask_probabilities.shape[-1], height, width, convention)
    return a_y @ mask_probabilities @ a_x.mT


def paste(mask_probabilities, boxes, height, width, *, convention, threshold=0.5, backend="auto"):
    """Pixels of each object: where its pasted probability is at least `threshold`.

    mask_probabilities  [D, S, S]
    boxes               [D, 4]     xyxy, pixels of the image; may leave it
    convention          "torchvision" or "detectron2", see `paste_matrix`
    Returns             [D, height, width] bool.

    Memory does not depend on the boxes. Raises ValueError for a non-finite box, naming its row, on the CPU.
    """
    mask_probabilities, boxes = _checked(mask_probabilities.detach(), boxes.detach(), convention)
    if backends.resolve(backend, boxes) == "triton":
        from accelerated.kernels.triton import masks as kernels  # Triton may be absent

        return kernels.paste(
            mask_probabilities, boxes, height, width, convention == "torchvision", float(threshold)
        )
    out = torch.empty(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    matrices = _paste_matrices(boxes, mask_probabilities.shape[-1], height, width, convention)
    for row, mask, a_y, a_x in zip(out, mask_probabilities, *matrices, strict=True):
        torch.ge(a_y @ mask @ a_x.mT, threshold, out=row)
    return out


def _checked(mask_probabilities, boxes, convention):
    if convention not in ("torchvision", "detectron2"):
        raise ValueError(f"convention: expected torchvision or detectron2, got {convention!r}")
    check_finite(boxes, "boxes")
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    return mask_probabilities.to(boxes.dtype), boxes


def _paste_matrices(boxes, size, height, width, convention):
    x1, y1, x2, y2 = boxes.unbind(1)
    return paste_matrix(y1, y2, size, height, convention), paste_matrix(
        x1, x2, size, width, convention
    )
