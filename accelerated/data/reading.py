"""How a data set is read where its files leave a choice."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Reading:
    """The choices; each command has an option for each.

    crowd           annotations with iscrowd 1 are "ignore": regions of many objects, which are not
                    trained on; "objects": objects, as CVAT marks its brush masks
    exif            labels are on the picture as "ignore": stored; "apply": displayed, by its EXIF
                    orientation; None: not known, so that pictures that leave it open are a problem
    boxes_as_masks  the box of an annotation without a mask is its mask
    masks           whether an object needs a mask; False for a model without a mask branch
    pixel_range     the values that become 0 and 255 in pictures of 16 or 32 bits; None: 0 and
                    65535 for 16 bits, and 32 bits are a problem
    """

    crowd: Literal["ignore", "objects"] = "ignore"
    exif: Literal["ignore", "apply"] | None = None
    boxes_as_masks: bool = False
    masks: bool = True
    pixel_range: tuple[float, float] | None = None


DEFAULT = Reading()
