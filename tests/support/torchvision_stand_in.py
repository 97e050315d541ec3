"""Modules that look functions up as torchvision's do, and compute nothing."""

import sys
import types

SOURCES = {
    "torchvision": "__version__ = '0.0'",
    "torchvision.ops.roi_align": """
def roi_align(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    return "theirs"

class RoIAlign:
    def __init__(self, *settings):
        self.settings = settings
    def forward(self, input, rois):
        return roi_align(input, rois, *self.settings)
""",
    "torchvision.ops.roi_pool": """
def roi_pool(input, boxes, output_size, spatial_scale=1.0):
    return "theirs"

class RoIPool:
    def forward(self, input, rois):
        return roi_pool(input, rois, 2, 0.5)
""",
    "torchvision.ops.poolers": """
from torchvision.ops.roi_align import roi_align

def _multiscale_roi_align(x_filtered, boxes, output_size, sampling_ratio, scales, mapper):
    return roi_align(x_filtered[0], boxes, output_size)

class MultiScaleRoIAlign:
    def forward(self, x, boxes, scales, mapper):
        return _multiscale_roi_align(x, boxes, (2, 2), 2, scales, mapper)
""",
    "torchvision.ops.boxes": """
def nms(boxes, scores, iou_threshold):
    return "theirs"

def batched_nms(boxes, scores, idxs, iou_threshold):
    return _batched_nms_vanilla(boxes, scores, idxs, iou_threshold)

def _batched_nms_vanilla(boxes, scores, idxs, iou_threshold):
    return nms(boxes, scores, iou_threshold)
""",
    "torchvision.ops": """
import sys
from torchvision.ops.boxes import batched_nms, nms
from torchvision.ops.roi_align import RoIAlign, roi_align
from torchvision.ops.roi_pool import RoIPool, roi_pool
boxes = sys.modules["torchvision.ops.boxes"]
""",
    "torchvision.models.detection.rpn": """
from torchvision.ops import boxes as box_ops

class RegionProposalNetwork:
    def filter_proposals(self, boxes, scores, group):
        return box_ops.batched_nms(boxes, scores, group, 0.5)
""",
    "torchvision.models.detection.roi_heads": """
from torchvision.ops import boxes as box_ops, roi_align

def project_masks_on_boxes(masks, rois, M):
    return roi_align(masks, rois, (M, M), 1.0)

def paste_masks_in_image(masks, boxes, img_shape, padding=1):
    return "theirs"

class RoIHeads:
    def postprocess_detections(self, boxes, scores, labels):
        return box_ops.batched_nms(boxes, scores, labels, 0.5)
""",
    "torchvision.models.detection.transform": """
from torchvision.models.detection.roi_heads import paste_masks_in_image

class GeneralizedRCNNTransform:
    def postprocess(self, masks, boxes, shape):
        return paste_masks_in_image(masks, boxes, shape)
""",
    # As detectron2.layers.roi_align does.
    "somebody.layers": """
from torchvision.ops import roi_align

class ROIAlign:
    def forward(self, input, rois):
        return roi_align(input, rois, (2, 2), 0.5, 0, True)
""",
}


def install(monkeypatch, changes=()):
    """Put the modules into sys.modules for a test; return {name: module}.

    changes  (module, old text, new text) of sources
    """
    sources, modules = dict(SOURCES), {}
    for name, old, new in changes:
        assert old in sources[name]
        sources[name] = sources[name].replace(old, new)
    for name in ("torchvision", *sources):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, source in sources.items():
        modules[name] = sys.modules[name]
        exec(compile(source, name, "exec"), modules[name].__dict__)
    return modules
