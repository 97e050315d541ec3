"""Mask targets and pasting in plain PyTorch, as products with interpolation matrices.

Both are separable, as RoIAlign is: out = A_y M A_xᵀ. On a CPU, targets read no more of a mask than
the window around their RoI; on a GPU, which must not be asked for sizes, they read all of it.

Legend: N images, G ground-truth slots, R rois, D detections, S side of the head's masks.
"""

import torch

from accelerated.kernels.eager.sampling import axis, clamp

# Unpacked pixels held at a time on the way to targets, and RoIs of about one size on a CPU.
CHUNK_PIXELS = 2**26
CHUNK_ROIS = 16
# Samples lie more than half a pixel apart, so at most four touch a pixel; one more at either end
# for rounding.
TAPS = 6


def targets(
    masks: torch.Tensor,
    image_index: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    valid: torch.Tensor,
    sizes: torch.Tensor,
    size: int,
    aligned: bool,
    binary: bool,
) -> torch.Tensor:
    """Return targets [R, size, size] in the dtype of `rois`, a chunk of RoIs at a time.

    masks [N, G, H, W8] uint8, rois [R, 4] float32 or float64, sizes [N, 2].
    """
    image_index, matched = image_index.clamp(min=0), matched.clamp(min=0)
    limit = sizes[image_index].to(rois.dtype)
    out = rois.new_zeros(len(rois), size, size)
    with torch.autocast(rois.device.type, enabled=False):
        for rows in _chunks(rois, valid, masks.shape[2] * masks.shape[3] * 8):
            x1, y1, x2, y2 = rois[rows].unbind(1)
            top, height = _window(y1, y2, masks.shape[2], 1)
            left, width = _window(x1, x2, masks.shape[3], 8)
            ys = top[:, None] + torch.arange(height, device=rois.device)
            xs = left[:, None] + torch.arange(width, device=rois.device)
            of_roi = (image_index[rows, None, None], matched[rows, None, None])
            pixels = unpack(masks[*of_roi, ys[:, :, None], xs[:, None, :]]).to(rois.dtype)
            xs = (xs[:, :, None] * 8 + torch.arange(8, device=rois.device)).flatten(1)
            a_y = sampling_matrix(y1, y2, size, ys, limit[rows, 0], aligned)
            a_x = sampling_matrix(x1, x2, size, xs, limit[rows, 1], aligned)
            out[rows] = a_y @ pixels @ a_x.mT
    out = (out >= 0.5).to(out.dtype) if binary else out
    return torch.where(valid[:, None, None], out, 0)


def _chunks(rois, valid, pixels):
    """Return lists of RoIs to compute at a time: on a CPU valid ones of about one size."""
    if rois.is_cuda:
        return torch.arange(len(rois), device=rois.device).split(max(CHUNK_PIXELS // pixels, 1))
    rows = valid.nonzero()[:, 0]
    side = (rois[rows, 2:] - rois[rows, :2]).amax(1)
    return rows[side.argsort()].split(max(min(CHUNK_PIXELS // pixels, CHUNK_ROIS), 1))


def _window(low, high, length, step):
    """Return the first [R] of the steps of pixels that RoIs read along an axis, and how many."""
    if low.is_cuda:
        return torch.zeros_like(low, dtype=torch.int64), length
    # A sample reads up to a pixel beyond it, and an RoI may be as long as a pixel.
    ends = torch.stack([low.floor() - 2, torch.maximum(low + 1, high).ceil() + 3])
    first, last = ends.nan_to_num().div(step).clamp(0, length).long()
    last = torch.minimum(last + 1, last.new_tensor(length))
    count = int((last - first).max()) if len(low) else 0
    return torch.minimum(first, last.new_tensor(length - count)), count


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bits, the highest first, as `numpy.unpackbits`: [..., B] -> [..., 8 B] uint8."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)


def sampling_matrix(
    low: torch.Tensor,
    high: torch.Tensor,
    bins: int,
    pixels: torch.Tensor,
    limit: torch.Tensor,
    aligned: bool,
) -> torch.Tensor:
    """Return matrices [R, bins, L] that average the adaptive samples of one axis (SPEC §1).

    low, high [R] are the ends of the RoIs, pixels [R, L] those of the mask that count, limit [R] is
    how many pixels the mask really has. There is no loop over samples: each pixel tries the few
    that may touch it.
    """
    start, side, count = (x[:, None, None] for x in axis(low, high, bins, 0, aligned))
    samples, limit = count.clamp(min=1), limit[:, None, None]
    start = start + torch.arange(bins, dtype=low.dtype, device=low.device)[:, None] * side
    pixel = pixels[:, None, :].to(low.dtype)
    first = ((pixel - 1 - start) / (side / samples) - 0.5).floor().clamp(min=0)
    out = torch.zeros_like(first)
    for sample in (first + tap for tap in range(TAPS)):
        position, on_map = clamp(start + (sample + 0.5) * side / samples, limit)
        weight = (1 - (position - pixel).abs()).clamp(min=0)
        out += torch.where((sample < count) & on_map, weight, 0)
    return out / samples


def paste_matrix(
    low: torch.Tensor, high: torch.Tensor, size: int, pixels: tuple[int, int], convention: str
) -> torch.Tensor:
    """Return matrices [D, length, size] that spread masks over a row of pixels (SPEC §11).

    A mask's `size` cells are spread from `low` [D] to `high` [D]; `pixels` are the first pixel and
    one past the last, `length` in all.
    "detectron2"   bilinear at each pixel's centre, zero outside the mask
    "torchvision"  the mask gets a border of one zero cell; its box grows in proportion and is then
                   truncated to whole pixels, ends included
    """
    pixel = torch.arange(*pixels, dtype=low.dtype, device=low.device)
    low, high = low[:, None], high[:, None]
    if convention == "detectron2":
        inside = high > low
        position = (pixel + 0.5 - low) / torch.where(inside, high - low, 1) * size - 0.5
    else:
        center, half = (high + low) * 0.5, (high - low) * 0.5 * ((size + 2) / size)
        low, high = (center - half).trunc(), (center + half).trunc()
        inside = (pixel >= low) & (pixel <= high)
        extent = (high - low + 1).clamp(min=1)
        # A number divided by a tensor would multiply the tensor's rounded reciprocal.
        scale = torch.full_like(extent, size + 2) / extent
        position = scale * (pixel - low + 0.5) - 0.5
        # Cells -1 and `size` are the zero border.
        position = position.clamp(0, size + 1) - 1
    cells = torch.arange(size, dtype=low.dtype, device=low.device)
    return (1 - (position[..., None] - cells).abs()).clamp(min=0) * inside[..., None]


def paste_matrices(
    boxes: torch.Tensor, size: int, height: int, width: int, convention: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices of y [D, height, size] and of x [D, width, size] of boxes [D, 4]."""
    x1, y1, x2, y2 = boxes.unbind(1)
    a_y = paste_matrix(y1, y2, size, (0, height), convention)
    return a_y, paste_matrix(x1, x2, size, (0, width), convention)


def windows_of(
    boxes: torch.Tensor, size: int, height: int, width: int, threshold: float
) -> torch.Tensor:
    """Return the windows [D, 4] int64 that pasted masks may fill: first row, column, end of both.

    Errs towards larger. A threshold of 0 or less fills the image.
    """
    limits = torch.tensor([width, height], dtype=boxes.dtype, device=boxes.device)
    if threshold <= 0:
        first, end = torch.zeros_like(boxes[:, :2]), limits.expand(len(boxes), 2)
    else:
        # Both conventions stay within the box grown by one cell; one pixel more for rounding.
        low, high = boxes[:, :2], boxes[:, 2:]
        center, half = (high + low) * 0.5, (high - low).clamp(min=0) * 0.5 * ((size + 2) / size)
        first = ((center - half).floor() - 1).clamp(min=0).minimum(limits)
        end = ((center + half).ceil() + 2).clamp(min=0).minimum(limits).maximum(first)
    return torch.cat([first.flip(1), end.flip(1)], 1).long()


def paste(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    height: int,
    width: int,
    convention: str,
    threshold: float,
) -> torch.Tensor:
    """Return [D, height, width] bool from masks [D, S, S] and boxes [D, 4] of one dtype."""
    out = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    windows = windows_of(boxes, mask_probabilities.shape[-1], height, width, threshold).cpu()
    crops = paste_windows(mask_probabilities, boxes, windows, convention, threshold)
    for row, (top, left, bottom, right), crop in zip(out, windows.tolist(), crops, strict=True):
        row[top:bottom, left:right] = crop
    return out


def paste_windows(
    mask_probabilities: torch.Tensor,
    boxes: torch.Tensor,
    windows: torch.Tensor,
    convention: str,
    threshold: float,
) -> list[torch.Tensor]:
    """Return each mask's pixels [h, w] bool in its window; see `windows_of`."""
    crops = []
    for mask, box, window in zip(mask_probabilities, boxes, windows.tolist(), strict=True):
        top, left, bottom, right = window
        x1, y1, x2, y2 = box[:, None]
        a_y = paste_matrix(y1, y2, len(mask), (top, bottom), convention)[0]
        a_x = paste_matrix(x1, x2, len(mask), (left, right), convention)[0]
        crops.append(a_y @ mask @ a_x.mT >= threshold)
    return crops
