"""The configurations that the ablation compares, at two scales [Mask R-CNN, table 2 and §4.2].

Each row changes a few fields of a base configuration; within a comparison all else is equal.
"""

from dataclasses import dataclass

from reference.config import Config, override, preset


@dataclass(frozen=True)
class Row:
    """One configuration of a comparison.

    paper     the paper's mask AP in points
    changes   to the base configuration, as `reference.config.override` takes them
    """

    name: str
    paper: float
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Rows to compare with each other; the paper's choice comes last."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Scale:
    """The size of an ablation.

    base          changes to the preset `tiny`, for every row
    stages        last backbone stages of the two models without a pyramid: the paper's C4, and its
                  C5 with twice the stride
    heads         further changes for the first of these
    deep          depth of the deeper backbone; the base has the other one
    image_size    of the synthetic shapes in pixels; the transform may resize them
    seeds         runs per row
    workers       data loading processes per run
    """

    base: tuple[str, ...]
    stages: tuple[int, int]
    heads: tuple[str, ...]
    deep: int
    image_size: int
    train_images: int
    val_images: int
    iterations: int
    seeds: int
    workers: int


REDUCED = Scale(
    base=(
        "transform.min_size=[96]",
        "transform.max_size=96",
        "rpn.pre_nms_top_n_train=128",
        "rpn.post_nms_top_n_train=128",
        "rpn.pre_nms_top_n_test=128",
        "rpn.post_nms_top_n_test=64",
        "box_head.kind=two_fc",
        "mask_head.mlp_channels=256",
    ),
    # Strides 8 and 16: objects of 15 to 40 pixels cover as many cells as COCO's at 16 and 32.
    stages=(3, 4),
    # The base's heads: running a backbone stage on every RoI takes as long as all the rest.
    heads=(),
    deep=34,
    image_size=96,
    train_images=2000,
    val_images=120,
    iterations=600,
    seeds=2,
    workers=0,
)
FULL = Scale(
    base=(
        "transform.min_size=[256]",
        "transform.max_size=256",
        "anchors.sizes=[[24], [48], [96], [192], [320]]",
        "backbone.depth=50",
        "backbone.width=32",
        "fpn.channels=64",
        "box_head.kind=two_fc",
        "box_head.channels=256",
        "mask_head.channels=64",
        "mask_head.convs=4",
        "optimizer.batch_size=16",
    ),
    stages=(4, 5),
    heads=(
        "shared_head=res5_unstrided",
        "box_head.kind=mean",
        "mask_head.convs=0",
        "mask_head.pooler.output_size=7",
    ),
    deep=101,
    image_size=128,
    train_images=5000,
    val_images=200,
    iterations=300,
    seeds=3,
    workers=3,
)


def base(scale: Scale) -> Config:
    """Return the configuration that every row changes."""
    return override(preset("tiny"), *scale.base)


def comparisons(scale: Scale) -> tuple[Comparison, ...]:
    """List the paper's comparisons at a scale."""
    sizes = [[size for level in base(scale).anchors.sizes for size in level]]
    shallow = base(scale).backbone.depth

    def one_map(stage):
        levels = [
            f"{head}.pooler.{end}_level={stage}"
            for head in ("box_head", "mask_head")
            for end in ("min", "max")
        ]
        return ("neck=single", f"backbone.out_stage={stage}", f"anchors.sizes={sizes}", *levels)

    def pooled_by(operator, aggregate="mean"):
        values = {"operator": operator, "aggregate": aggregate}
        return tuple(
            f"{head}.pooler.{field}={value}"
            for head in ("box_head", "mask_head")
            for field, value in values.items()
        )

    fine, coarse = (f"C{stage}" for stage in scale.stages)
    c4 = one_map(scale.stages[0]) + scale.heads
    c5 = one_map(scale.stages[1])
    fpn = ()
    deep = (f"backbone.depth={scale.deep}",)
    return (
        Comparison(
            "(a) depth and neck",
            (
                Row(f"ResNet-{shallow}-{fine}", 30.3, c4),
                Row(f"ResNet-{scale.deep}-{fine}", 32.7, c4 + deep),
                Row(f"ResNet-{shallow}-FPN", 33.6, fpn),
                Row(f"ResNet-{scale.deep}-FPN", 35.4, fpn + deep),
            ),
        ),
        Comparison(
            f"(b) mask loss, {fine}",
            (Row("softmax", 24.8, (*c4, "mask_head.loss=softmax")), Row("sigmoid", 30.3, c4)),
        ),
        Comparison(
            f"(c) RoI operator, {fine}",
            (
                Row("RoIPool", 26.9, c4 + pooled_by("roi_pool")),
                Row("RoIWarp", 27.2, c4 + pooled_by("roi_warp")),
                Row("RoIAlign, max", 30.2, c4 + pooled_by("roi_align", "max")),
                Row("RoIAlign, mean", 30.3, c4),
            ),
        ),
        Comparison(
            f"(d) twice the stride, {coarse}",
            (
                Row(f"RoIPool, {coarse}", 23.6, c5 + pooled_by("roi_pool")),
                Row(f"RoIAlign, {coarse}", 30.9, c5),
            ),
        ),
        Comparison(
            "(e) mask head, FPN",
            (Row("MLP", 31.5, (*fpn, "mask_head.kind=mlp")), Row("FCN", 33.6, fpn)),
        ),
        Comparison(
            f"(f) masks per class, {fine}",
            (
                Row("class-agnostic", 29.7, (*c4, "mask_head.class_agnostic=true")),
                Row("class-specific", 30.3, c4),
            ),
        ),
    )
