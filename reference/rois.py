"""What the RoI operators share: checks, output sizes and rounding.

Legend: N images, R rois, P pooled size.
"""

import numpy as np

from reference.autodiff import Array

# P, or (P_h, P_w).
Size = int | tuple[int, int]


def check(features: Array, rois: Array, image_index: Array) -> tuple[Array, Array]:
    """Return `rois` [R, 4] as floats, those of padding as 0, and `image_index` [R] as an array.

    Raises ValueError for other shapes, for a non-finite RoI and for an image index that is neither
    -1 (a padding RoI, which may hold anything) nor a row of `features`, naming the first such row.
    """
    rois, image_index = _floats(rois), np.asarray(image_index)
    if rois.ndim != 2 or rois.shape[1] != 4 or image_index.shape != rois.shape[:1]:
        raise ValueError(
            f"expected rois [R, 4] and image_index [R], got {rois.shape} and {image_index.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(rois).all(axis=1) & (image_index >= 0))
    if len(bad):
        raise ValueError(f"rois[{bad[0]}] is not finite: {rois[bad[0]].tolist()}")
    bad = np.flatnonzero((image_index < -1) | (image_index >= len(features)))
    if len(bad):
        images = f"{len(features)} images"
        raise ValueError(f"image_index[{bad[0]}] is {image_index[bad[0]]}, of {images}")
    return np.where(image_index[:, None] >= 0, rois, 0), image_index


def pair(output_size: Size) -> tuple[int, int]:
    """Return (P_h, P_w) from P or a pair."""
    height, width = np.broadcast_to(output_size, 2)
    return int(height), int(width)


def whole_pixels(rois: Array, spatial_scale: float) -> Array:
    """Round RoIs [R, 4] to whole feature pixels, xyxy [SPEC §2].

    Half a pixel rounds away from zero, as in C (NumPy rounds it to even). The last pixel belongs to
    the RoI, so its end lies one further; an RoI is at least one pixel wide.
    """
    rois = _floats(rois)
    exact = rois * rois.dtype.type(spatial_scale)
    whole = np.trunc(exact)
    low, high = np.split(whole + np.sign(exact) * (np.abs(exact - whole) >= 0.5), 2, axis=1)
    return np.concatenate([low, np.maximum(high, low) + 1], axis=1)


def _floats(rois):
    """Return RoIs as floats: integers become float64."""
    rois = np.asarray(rois)
    return rois if rois.dtype.kind == "f" else rois.astype(np.float64)
