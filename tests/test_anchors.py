from dataclasses import replace

import numpy as np
import pytest
import torch
from support.golden_cases import EXTENT, cases

import accelerated.anchors
import reference.anchors
from accelerated.verify.equality import GOLDEN_OPERATOR, assert_close, assert_equal
from reference import config

TORCHVISION = config.preset("torchvision_r50_fpn").anchors
DETECTRON2 = config.preset("detectron2_r50_fpn").anchors
SHAPES = [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1)]
STRIDES = (4, 8, 16, 32, 64)


def numpy_grid(shapes, image_shape, settings, strides=STRIDES):
    return np.concatenate(
        reference.anchors.grid(shapes, image_shape, settings, strides=strides[: len(shapes)])
    )


def torch_grid(shapes, image_shape, settings, strides=STRIDES):
    return torch.cat(
        accelerated.anchors.grid(
            shapes, image_shape, settings, strides=strides[: len(shapes)], dtype=torch.float64
        )
    )


GRIDS = pytest.mark.parametrize("grid", [numpy_grid, torch_grid], ids=["numpy", "torch"])
MODULES = pytest.mark.parametrize(
    "anchors", [reference.anchors, accelerated.anchors], ids=["numpy", "torch"]
)


@GRIDS
@EXTENT
def test_torchvision(grid, extent, request):
    for name, case in cases(request, extent, "tv", "anchors/float64").items():
        settings = replace(
            TORCHVISION,
            sizes=tuple(map(tuple, case["in.sizes"].tolist())),
            ratios=tuple(case["in.ratios"].tolist()),
        )
        assert_equal(
            grid(case["in.feat_hw"], case["in.image_hw"], settings), case["out.anchors"], name
        )


@GRIDS
@EXTENT
def test_detectron2(grid, extent, request):
    for name, case in cases(request, extent, "d2", "anchors").items():
        settings = replace(
            DETECTRON2,
            sizes=tuple(map(tuple, case["in.sizes"].tolist())),
            ratios=tuple(case["in.ratios"].tolist()),
            offset=float(case["in.offset"]),
        )
        expected = np.concatenate([case[f"out.lvl{level}"] for level in range(len(settings.sizes))])
        shape = case["in.feat_hw"][0] * 4
        assert_close(
            grid(case["in.feat_hw"], shape, settings, strides=case["in.strides"].tolist()),
            expected,
            GOLDEN_OPERATOR,
            name,
        )


@MODULES
def test_cell_by_hand(anchors):
    rounded = anchors.cell_anchors((32,), (0.5, 1, 2), TORCHVISION)
    assert_equal(rounded, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    exact = anchors.cell_anchors((32,), (0.5, 1, 2), DETECTRON2)
    assert_close(exact[0], [-22.627416998, -11.313708499, 22.627416998, 11.313708499], 1e-10)
    # Half to even.
    assert_equal(anchors.cell_anchors((1, 5), (1.0,), TORCHVISION), [[0, 0, 0, 0], [-2, -2, 2, 2]])


@MODULES
def test_order_inside_a_cell(anchors):
    sizes, ratios = (8, 16), (1.0, 4.0)
    sides = {
        order: np.asarray(anchors.cell_anchors(sizes, ratios, replace(DETECTRON2, order=order)))[
            :, 2:
        ]
        * 2
        for order in ("ratio_major", "size_major")
    }
    assert_equal(sides["ratio_major"], [[8, 8], [16, 16], [4, 16], [8, 32]])
    assert_equal(sides["size_major"], [[8, 8], [4, 16], [16, 16], [8, 32]])


@GRIDS
def test_strides_of_the_image_or_constant(grid):
    last = len(SHAPES) - 1
    shapes, image = [*SHAPES[:last], (13, 21)], (800, 1344)
    configs = TORCHVISION, replace(DETECTRON2, offset=0.5)
    last_anchors = [np.asarray(grid(shapes, image, config)[-1]) for config in configs]
    centres = [((anchor[:2] + anchor[2:]) / 2).tolist() for anchor in last_anchors]
    # 800 // 13 = 61.
    assert centres == [[20 * 64, 12 * 61], [20.5 * 64, 12.5 * 64]]


@GRIDS
def test_rows_are_y_then_x_then_anchor(grid):
    anchors = np.asarray(grid(SHAPES, (40, 56), DETECTRON2))
    assert len(anchors) == 3 * sum(h * w for h, w in SHAPES)
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2)[: 3 * 140].reshape(10, 14, 3, 2)
    assert_close(centres[7, 9], [[36, 28]] * 3, 1e-14)


@pytest.mark.parametrize("preset", ["torchvision_r50_fpn", "detectron2_r50_fpn", "tiny"])
def test_twins_and_float32(preset):
    settings = config.preset(preset).anchors
    expected = reference.anchors.grid(SHAPES, (40, 56), settings, strides=STRIDES)
    for dtype in torch.float64, torch.float32:
        levels = accelerated.anchors.grid(SHAPES, (40, 56), settings, strides=STRIDES, dtype=dtype)
        for ours, level in zip(levels, expected, strict=True):
            assert ours.dtype == dtype
            assert_equal(ours, level.astype(str(dtype).removeprefix("torch.")))


def test_remembered_per_shape_dtype_and_device():
    first = accelerated.anchors.grid(SHAPES, (40, 56), TORCHVISION, strides=STRIDES)
    again = accelerated.anchors.grid(
        [torch.Size(s) for s in SHAPES], torch.Size((40, 56)), TORCHVISION, strides=STRIDES
    )
    assert all(a is b for a, b in zip(first, again, strict=True))
    other = accelerated.anchors.grid(SHAPES, (40, 70), TORCHVISION, strides=STRIDES)
    assert not torch.equal(first[0], other[0])
    with torch.inference_mode():
        inside = accelerated.anchors.grid(SHAPES, (44, 60), TORCHVISION, strides=STRIDES)
    # Training may be next.
    assert not inside[0].is_inference()


def test_compiles_without_a_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def forward(x):
        return (
            torch.cat(
                accelerated.anchors.grid(
                    SHAPES, (40, 56), TORCHVISION, strides=STRIDES, device=x.device
                )
            )
            + x
        )

    assert_equal(
        forward(torch.zeros(1)), numpy_grid(SHAPES, (40, 56), TORCHVISION).astype(np.float32)
    )
