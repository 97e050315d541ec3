"""The benchmark's cases: every one agrees with float64, and with torchvision where it is."""

from functools import partial

import pytest
import torch

from accelerated.experiments import (
    benchmark,
    benchmark_boxes,
    benchmark_cases,
    benchmark_models,
)
from accelerated.verify import equality

CPU = torch.device("cpu")


def test_random_boxes_lie_inside():
    boxes = benchmark_cases.random_boxes(500, 50, 90, 4, 40, torch.Generator().manual_seed(0))
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 90).all() and (boxes[:, [1, 3]] <= 50).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 3.99).all() and (sides < 40.01).all()


@pytest.mark.parametrize("operator", ["training_step", "detect"])
def test_the_whole_model_agrees_with_float64(operator):
    case = benchmark_models.whole_model(
        operator, name="tiny", images=2, side=(96, 128), dtype=torch.float32, device=CPU
    )
    result, expected = case.ours("torch")(), case.oracle()
    assert case.compare(result, expected) <= case.tolerance
    wrong = result * 2 if operator == "training_step" else (result[0] + 1, *result[1:])
    assert case.compare(wrong, expected) > case.tolerance
    # A model with group norm is none of torchvision's.
    assert case.peers == {} and case.images == 2


SMALL = {"images": 3, "side": (64, 96)}


def small_cases(device):
    """Every operator of the benchmark, with small inputs."""
    sizes = SMALL | {"rois": 6, "dtype": torch.float32, "device": device}
    for name in benchmark_cases.ROI_OPERATORS:
        for way in ("forward", "backward"):
            yield f"{name}_{way}", partial(benchmark_cases.pooling, layout="channels_last", **sizes)
    yield "batched_nms", partial(benchmark_boxes.suppression, device=device)
    proposals = partial(benchmark_boxes.proposal_suppression, images=3, count=50)
    yield "proposal_nms", partial(proposals, device=device)
    yield "matcher", partial(benchmark_boxes.matching, device=device, **SMALL)
    yield "mask_targets", partial(benchmark_boxes.mask_targets, device=device, rois=5, **SMALL)
    yield "paste", partial(benchmark_boxes.pasting, device=device, count=5, side=(64, 96))


CASES = pytest.mark.parametrize(
    ("operator", "make"), [pytest.param(*case, id=case[0]) for case in small_cases(CPU)]
)


@CASES
def test_every_operator_agrees_with_float64_and_notices_a_mistake(operator, make):
    case = make(operator)
    result, expected = case.ours("torch")(), case.oracle()
    assert case.compare(result, expected) <= case.tolerance
    assert benchmark._work(case, None, result)["bytes"] > 0

    def spoil(x):
        return ~x if x.dtype == torch.bool else x + 1

    wrong = spoil(result) if isinstance(result, torch.Tensor) else [spoil(x) for x in result]
    assert case.compare(wrong, expected) > case.tolerance


@CASES
def test_torchvision_computes_the_same(operator, make):
    pytest.importorskip("torchvision")
    case = make(operator)
    ours, theirs = case.ours("torch")(), case.peers[""]()()
    if operator in ("proposal_nms", "matcher"):
        # They come by image; torchvision's matcher returns -1 and -2 for what it does not match.
        return
    if operator == "mask_targets":
        theirs = torch.cat(theirs)
    if operator == "paste":
        assert benchmark_boxes.differing(ours, theirs[:, 0]) <= case.tolerance
    elif operator.startswith("pyramid_roi_align"):
        # torchvision's pyramid is not aligned: the same work, other numbers.
        assert [x.shape for x in ours] == [x.shape for x in theirs]
    else:
        assert equality.device_error(theirs, ours) <= max(case.tolerance, 1e-5)


def test_the_list_holds_every_size_for_a_gpu():
    """The cases are only named here, not made."""
    named = [(name, make.keywords) for name, make in benchmark.cases(torch.device("cuda"))]
    training = [
        (facts["images"], benchmark.dtype_name(facts["dtype"]))
        for name, facts in named
        if name == "training_step"
    ]
    assert {(2, "float32"), (2, "bfloat16"), (8, "bfloat16"), (16, "bfloat16")} == set(training)
    assert {facts["images"] for name, facts in named if name == "detect"} == {1, 8}
    pooled = {
        (name, facts.get("images", 2), facts.get("rois", 500), facts.get("size", 7))
        for name, facts in named
        if "roi" in name
    }
    for name in ("pyramid_roi_align", "pyramid_roi_pool"):
        for way in ("forward", "backward"):
            for sizes in ((2, 500, 7), (16, 512, 7), (16, 128, 14)):
                assert (f"{name}_{way}", *sizes) in pooled
    # Notebook 11 draws these.
    single = {
        (facts["dtype"], facts["layout"]) for name, facts in named if name == "roi_align_forward"
    }
    for dtype in (torch.float32, torch.float16):
        assert {(dtype, "nchw"), (dtype, "channels_last")} <= single


@pytest.mark.gpu
@pytest.mark.parametrize(
    "operator",
    [
        f"{name}_{way}"
        for name in ("roi_align", "roi_pool", "pyramid_roi_align")
        for way in ("forward", "backward")
    ],
)
def test_operators_agree_with_float64(operator, device, backend):
    case = benchmark_cases.pooling(operator, torch.float32, "channels_last", device)
    assert case.compare(case.ours(backend)(), case.oracle()) <= case.tolerance
