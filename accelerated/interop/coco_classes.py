"""COCO's 80 categories and their ids, which leave out ten numbers of 1..90.

torchvision's models have an output for each of 1..90, so that a label is a category id; models of
detectron2 and maskrcnn-benchmark have 80, by rising id.
"""

from accelerated.interop.names import unused

# The numbers that no category has.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# fmt: off
NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
IDS = [number for number in range(1, 91) if number not in GAPS]
CATEGORIES = [{"id": number, "name": name} for number, name in zip(IDS, NAMES, strict=True)]


def of_labels(count: int) -> list[dict] | None:
    """Return {"id", "name"} of the labels 1..count of a head for COCO; None if it is none."""
    if count == len(CATEGORIES):
        return [dict(category) for category in CATEGORIES]
    if count == IDS[-1]:
        names = dict(zip(IDS, NAMES, strict=True))
        return [{"id": k, "name": names.get(k, unused(k))} for k in range(1, count + 1)]
    return None
