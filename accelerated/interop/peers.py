"""Whose tensors these are, by their names; and what there is no model for here.

A peer is a module with

recognises(names)           whether they are names of its detectors
our_name(name)              None where there is none
their_name(name, config)
ignored(name)               of its tensors that hold no weights
nearest(tensors)            name of the preset that tensors (our names) look like, or None
described(tensors, theirs)  Config of that, with all switches that the tensors, by our names and by theirs, tell of
"""

import re

from accelerated.interop import detectron2, maskrcnn_benchmark, own, torchvision

PEERS = (maskrcnn_benchmark, torchvision, detectron2, own)

STRANGERS = (
    (r"roi_heads\.box_predictor\.\d+\..+", "Cascade R-CNN"),
    (r"roi_heads\.keypoint.+", "Keypoint R-CNN"),
    (
        r"(.*\.)?head\.(cls_subnet|bbox_subnet|cls_tower|bbox_tower|classification_head|regression_head)\..+",
        "RetinaNet or its like",
    ),
    (r"sem_seg_head\..+", "panoptic or semantic segmentation"),
    (r"roi_heads\.(mask_(coarse|point)_head|mask_head\.(coarse|point)_head)\..+", "PointRend"),
    (r".*conv2[._]offset\..+", "deformable convolution"),
    (r".*feature_extractor\.head\.layer4\..+", "C4 model of maskrcnn-benchmark"),
    (r"backbone\.body\.\d+\..+", "MobileNet backbone"),
    (r"features\.1\.running_mean", "VGG with batch normalisation"),
    (
        r"conv_rpn_.+|rpn_cls_logits_.+|cls_score_w",
        "whole detector of Caffe2's Detectron, of which only the ImageNet backbones are read,",
    ),
)


def of(names):
    """The peer whose detector this is, or None; ValueError for a model of a kind that is not here."""
    for pattern, what in STRANGERS:
        for name in names:
            if re.fullmatch(pattern, name):
                raise ValueError(f"{name} belongs to a {what}; there is no such model here")
    return next((peer for peer in PEERS if peer.recognises(names)), None)
