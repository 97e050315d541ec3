"""What notebook 11 says of addresses: recorded by Triton's interpreter, or computed; both right."""

import addresses
import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from accelerated.roi_align import roi_align

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
KEYWORDS = {"output_size": 3, "spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True}


def case(layout, channels=260):
    """Features of two images, and RoIs inside the map, over its border and outside."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 12, 16, generator=generator).to(memory_format=layout)
    rois = torch.tensor([[9.0, 7, 41, 33], [-7, -9, 21, 14], [50, 30, 90, 70], [200, 0, 220, 9]])
    return features, rois, torch.tensor([0, 1, 1, 0])


@LAYOUTS
def test_recorded_and_computed_are_equal(layout):
    recorded = addresses.recorded(*case(layout), **KEYWORDS)
    assert recorded is not None, (
        "this Triton cannot be watched: the notebook's addresses are computed"
    )
    computed = addresses.computed(*case(layout), **KEYWORDS)
    # Four RoIs of three rows of bins, two blocks of channels.
    assert set(recorded) == set(computed) == {(row, c) for row in range(12) for c in range(2)}
    for program, loads in recorded.items():
        assert len(loads) == len(computed[program]) == 2 * 2 * 4
        for a, b in zip(loads, computed[program], strict=True):
            np.testing.assert_array_equal(a.mask, b.mask)
            np.testing.assert_array_equal(a.offsets[a.mask], b.offsets[b.mask])


@LAYOUTS
def test_nothing_else_is_read(layout):
    """Poison in all other features changes no output; poison in those of one program does."""
    features, rois, index = case(layout)
    programs = addresses.computed(features, rois, index, **KEYWORDS)
    expected = roi_align(features, rois, index, **KEYWORDS, backend="torch")
    read = {
        program: np.unique(np.concatenate([load.offsets[load.mask] for load in loads])) // 4
        for program, loads in programs.items()
    }
    # The features in the order of memory.
    flat = features.permute(0, 2, 3, 1) if layout == torch.channels_last else features
    poisoned = torch.full_like(flat, torch.nan)
    places = np.concatenate(list(read.values()))
    poisoned.view(-1)[places] = flat.reshape(-1)[places]
    back = poisoned.permute(0, 3, 1, 2) if layout == torch.channels_last else poisoned
    out = roi_align(back, rois, index, **KEYWORDS, backend="torch")
    assert torch.equal(out, expected)
    # RoI 0, middle row of bins, channels 256 to 259.
    poisoned.view(-1)[read[1, 1]] = torch.nan
    out = roi_align(back, rois, index, **KEYWORDS, backend="torch")
    assert out[0, 256:, 1].isnan().all() and not out[0, :256].isnan().any()


def test_by_hand():
    """One sample at the middle of four pixels: index (1.5, 0.5) in a map of 4 x 5."""
    features = torch.zeros(1, 2, 4, 5)
    rois, keywords = torch.tensor([[0.0, 1, 2, 3]]), {"spatial_scale": 1.0, "sampling_ratio": 1}
    programs = addresses.computed(
        features, rois, torch.tensor([0]), output_size=1, **keywords, aligned=True
    )
    [loads] = programs.values()
    # Pixels (1, 0), (1, 1), (2, 0), (2, 1) of channels 0 and 1, which are 80 bytes apart.
    assert [load.offsets.tolist() for load in loads] == [
        [[20, 100]],
        [[24, 104]],
        [[40, 120]],
        [[44, 124]],
    ]


def test_loads_say_which_ran(record_property):
    recorded = addresses.recorded(*case(torch.contiguous_format), **KEYWORDS)
    _, how = addresses.loads(*case(torch.contiguous_format), **KEYWORDS)
    record_property("addresses", how)
    assert how == ("computed" if recorded is None else "recorded")


@pytest.mark.parametrize("what", ["the function", "its arguments", "the interpreter"])
def test_computed_where_the_interpreter_has_changed(monkeypatch, what):
    builder = interpreter.InterpreterBuilder
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if what == "the function":
        monkeypatch.delattr(builder, "create_masked_load")
    elif what == "its arguments":
        # The launch loads something, but neither program ids nor pointers have their names.
        monkeypatch.setattr(builder, "create_masked_load", lambda *_: None)
        unknown = [object()] * 3
        monkeypatch.setattr(
            addresses, "roi_align", lambda *_, **__: builder.create_masked_load(*unknown)
        )
    else:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    programs, how = addresses.loads(*case(torch.contiguous_format), **KEYWORDS)
    assert how == "computed" and len(programs) == 24


def test_the_interpreter_is_left_as_it_was(monkeypatch):
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    before = interpreter.InterpreterBuilder.create_masked_load
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def fails(*_, **__):
        assert interpreter.InterpreterBuilder.create_masked_load is not before
        raise RuntimeError("the launch fails")

    monkeypatch.setattr(addresses, "roi_align", fails)
    with pytest.raises(RuntimeError, match="the launch fails"):
        addresses.recorded(*case(torch.contiguous_format), **KEYWORDS)
    assert interpreter.InterpreterBuilder.create_masked_load is before


@pytest.mark.parametrize("other", [{"aligned": False}, {"sampling_ratio": 0}])
def test_what_cannot_be_computed_is_refused(other):
    with pytest.raises(ValueError, match="aligned=True"):
        addresses.computed(*case(torch.contiguous_format), **KEYWORDS | other)
