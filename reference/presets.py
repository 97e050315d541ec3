"""Named configurations: those of torchvision and detectron2, of the papers, and two little ones.

Plain data: what differs from the defaults of config.py, which are torchvision's. A variant is one
field away: `override(preset("paper_r50_fpn"), "mask_head.loss=softmax")`, and likewise
"mask_head.kind=none" (Faster R-CNN) or "box_head.pooler.operator=roi_pool".
"""


def merged(*layers: dict) -> dict:
    """Merge nested dictionaries; later ones override earlier ones."""
    out = {}
    for layer in layers:
        for name, value in layer.items():
            both = isinstance(value, dict) and isinstance(out.get(name), dict)
            out[name] = merged(out[name], value) if both else value
    return out


def poolers(**fields) -> dict:
    """Return a layer with these fields in the poolers of both heads."""
    return {"box_head": {"pooler": fields}, "mask_head": {"pooler": fields}}


def single_scale(level: int, **fields) -> dict:
    """Return a layer for the last map of the backbone, of stride 2**level, with its `fields`."""
    return merged(
        {"neck": "single", "transform": {"size_divisor": 0}, "backbone": fields},
        {"anchors": {"sizes": ((32, 64, 128, 256, 512),)}, "rpn": {"post_nms_top_n_train": 2000}},
        {"rpn": {"pre_nms_top_n_train": 12000, "pre_nms_top_n_test": 6000}},
        poolers(min_level=level, max_level=level),
    )


def c4(shared_head: str, output_size: int) -> dict:
    """Return a layer with stage 5 in the heads, shared by both (SPEC §14)."""
    heads = {"shared_head": shared_head, "box_head": {"kind": "mean"}, "mask_head": {"convs": 0}}
    return merged(single_scale(4, out_stage=4), heads, poolers(output_size=output_size))


R101 = {"backbone": {"depth": 101}}

TORCHVISION_V2 = merged(
    {"backbone": {"norm": "batch", "frozen_stages": 0}, "fpn": {"norm": "batch"}},
    {"rpn": {"conv_depth": 2}, "box_head": {"kind": "four_conv_fc", "norm": "batch"}},
    {"mask_head": {"norm": "batch"}},
)

# What detectron2 and the papers share: Caffe's networks and pixels, Detectron's anchors and boxes.
CAFFE = merged(
    {"background": "last", "backbone": {"stride_in_1x1": True}},
    {"transform": {"channel_order": "bgr", "pixel_scale": 1.0, "std": (1.0, 1.0, 1.0)}},
    {"anchors": {"rounding": False, "order": "size_major", "stride": "constant"}},
    {"box_head": {"min_size": None, "drop_empty": True}, "mask_head": {"target": "binary"}},
)

DETECTRON2 = merged(
    CAFFE,
    {"transform": {"size_rounding": "nearest", "mean": (103.53, 116.28, 123.675)}},
    {"transform": {"interpolation": "pillow", "normalize_first": False, "ratio_dtype": "float64"}},
    {"rpn": {"loss_normalizer": "batch_size", "nms_score": "logit", "post_nms_top_n_train": 1000}},
    {"rpn": {"min_size": 0.0, "min_size_inclusive": False}, "box_head": {"smooth_l1_beta": 0.0}},
    {"rpn": {"smooth_l1_beta": 0.0}, "mask_head": {"target_aligned": True, "paste": "detectron2"}},
    {"mask_head": {"target": "polygon"}},
    poolers(sampling_ratio=0, aligned=True, level_epsilon="inside"),
)
DETECTRON2_C4 = merged(DETECTRON2, c4("res5", output_size=14))
DETECTRON2_DC5 = merged(DETECTRON2, single_scale(4, dilation=2))
# ResNeXt-101-32x8d. Caffe2's weights: other image statistics, strides in the 3x3 convolutions.
DETECTRON2_X101 = merged(
    DETECTRON2,
    {"transform": {"std": (57.375, 57.12, 58.395)}, "backbone": {"stride_in_1x1": False}},
    {"backbone": {"depth": 101, "groups": 32, "group_width": 8}},
)

# Mask R-CNN §3.1 with a pyramid. What the paper leaves open is as in Detectron: 4 samples per bin,
# RoIs of at least one pixel. The schedule is for 160k iterations of 16 images.
PAPER = merged(
    CAFFE,
    {"transform": {"mean": (102.9801, 115.9465, 122.7717)}},
    {"rpn": {"zero_iou_matches": False}, "box_head": {"smooth_l1_beta": 1.0}},
    {"optimizer": {"warmup_iterations": 500, "warmup_factor": 1 / 3, "steps": (0.75,)}},
)
# Mask R-CNN §3.1 without a pyramid; figure 4, left; table 2d.
PAPER_SINGLE = merged(PAPER, {"rpn": {"post_nms_top_n_test": 300}, "box_head": {"batch_size": 64}})
PAPER_C4 = merged(PAPER_SINGLE, c4("res5_unstrided", output_size=7))
PAPER_C5 = merged(PAPER_SINGLE, single_scale(5))
# Backbone and box head of Faster R-CNN, without its dropout; with RoIAlign and a mask branch.
PAPER_VGG16 = merged(
    PAPER_SINGLE, single_scale(4, kind="vgg", stride_in_1x1=False), {"box_head": {"channels": 4096}}
)

# Small enough to train from scratch on two CPU cores in minutes.
TINY = merged(
    {"num_classes": 3, "norm_groups": 8, "transform": {"min_size": (128,), "max_size": 128}},
    {"backbone": {"depth": 18, "width": 16, "norm": "group", "frozen_stages": 0}},
    {"anchors": {"sizes": ((12,), (24,), (48,), (96,), (160,)), "rounding": False}},
    {"anchors": {"stride": "constant"}, "fpn": {"channels": 32, "norm": "group"}},
    {"rpn": {"zero_iou_matches": False, "batch_size": 128, "pre_nms_top_n_train": 256}},
    {"rpn": {"pre_nms_top_n_test": 256, "post_nms_top_n_train": 256, "post_nms_top_n_test": 128}},
    {"box_head": {"kind": "four_conv_fc", "channels": 128, "conv_channels": 32, "norm": "group"}},
    {"box_head": {"batch_size": 32}, "mask_head": {"convs": 2, "channels": 32, "norm": "group"}},
    {"mask_head": {"target_aligned": True, "paste": "detectron2"}},
    {"optimizer": {"kind": "adamw", "learning_rate": 0.002, "batch_size": 4}},
    {"optimizer": {"weight_decay": 0.02, "norm_weight_decay": 0.0, "warmup_iterations": 50}},
    {"optimizer": {"steps": (0.75, 0.92), "gamma": 0.2, "clip_gradient_norm": 10.0}},
    poolers(aligned=True),
)
# For photographs: the same network on images of 512 pixels, in half an hour on two CPU cores.
SMALL = merged(
    TINY,
    {"transform": {"min_size": (512,), "max_size": 512}},
    {"anchors": {"sizes": ((16,), (32,), (64,), (128,), (256,))}},
    {"rpn": {"batch_size": 256, "pre_nms_top_n_train": 1000, "pre_nms_top_n_test": 1000}},
    {"rpn": {"post_nms_top_n_train": 500, "post_nms_top_n_test": 500}},
    {"box_head": {"batch_size": 64}, "mask_head": {"convs": 4}},
)

PRESETS = {
    "torchvision_r50_fpn": {},
    "torchvision_r50_fpn_v2": TORCHVISION_V2,
    "detectron2_r50_fpn": DETECTRON2,
    "detectron2_r101_fpn": merged(DETECTRON2, R101),
    "detectron2_r50_c4": DETECTRON2_C4,
    "detectron2_r101_c4": merged(DETECTRON2_C4, R101),
    "detectron2_r50_dc5": DETECTRON2_DC5,
    "detectron2_r101_dc5": merged(DETECTRON2_DC5, R101),
    "detectron2_x101_fpn": DETECTRON2_X101,
    "paper_r50_c4": PAPER_C4,
    "paper_r101_c4": merged(PAPER_C4, R101),
    "paper_r50_fpn": PAPER,
    "paper_r101_fpn": merged(PAPER, R101),
    "paper_r50_c5": PAPER_C5,
    "paper_vgg16": PAPER_VGG16,
    "tiny": TINY,
    "small": SMALL,
}
