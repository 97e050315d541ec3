"""The NumPy reader of checkpoints, against safetensors and interop, on files of our own writer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support import narrow, small

from accelerated import interop, optimizer
from accelerated.engine import checkpoint as writer
from accelerated.verify.equality import MODEL, assert_close, assert_equal
from reference import checkpoint, mask_rcnn
from reference.config import to_dict

CONFIG = small.config()


def write(folder, model, config):
    """Save `model` as training does; the folder of the checkpoint."""
    categories = [{"id": k, "name": str(k)} for k in range(1, config.num_classes + 1)]
    state = optimizer.build(model, config.optimizer)
    return writer.save(folder, model, config, categories, state, iteration=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in float32."""
    model = narrow.model(CONFIG, dtype=torch.float32)
    return write(tmp_path_factory.mktemp("run"), model, CONFIG)


def copy(saved, folder, tensors=None):
    """The checkpoint in another folder, with other tensors."""
    tensors = (
        safetensors.torch.load_file(saved / "model.safetensors") if tensors is None else tensors
    )
    (folder / "config.json").write_text((saved / "config.json").read_text())
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same_parameters(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize("name", narrow.LAYOUTS)
def test_equals_interop(tmp_path, name):
    """Parameters and configuration, with the buffers and batch counters of every layout."""
    config = narrow.config(name)
    run = tmp_path / "run"
    write(run, narrow.model(config, dtype=torch.float32), config)
    for dtype in (np.float64, np.float32):
        model = checkpoint.load(run / "last", dtype)
        assert model.config == config and model.dtype == dtype
        assert_same_parameters(model.parameters, interop.parameters(interop.load(run), dtype))


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16])
def test_detects_as_the_loaded_twin(tmp_path, rng, stored):
    """Every stored dtype is computed in float64, and its weights are exactly those of the file."""
    model = narrow.model(CONFIG, dtype=torch.float64)
    rounded = {
        n: t.to(stored) if t.is_floating_point() else t for n, t in model.state_dict().items()
    }
    copy(write(tmp_path / "run", model, CONFIG), tmp_path, rounded)
    model = checkpoint.load(str(tmp_path))
    twin = interop.load(tmp_path).double()
    assert_same_parameters(model.parameters, interop.parameters(twin))
    image = rng.integers(0, 256, (64, 48, 3), np.uint8)
    (found,), (expected,) = model.detect([image]), twin.detect([image])
    assert len(found.labels) > 0 and found.boxes.dtype == np.float64
    assert_close(found.boxes, expected.boxes, MODEL["float64"])
    assert_close(found.scores, expected.scores, MODEL["float64"])
    assert_equal(found.labels, expected.labels)
    assert_equal(found.masks, expected.masks)
    (same,) = mask_rcnn.MaskRCNN(CONFIG, interop.parameters(twin)).detect([image])
    for name, value in vars(found).items():
        assert_equal(value, getattr(same, name), name)


def test_every_dtype_and_shape(tmp_path):
    kinds = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16)
    kinds += (torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0), "last": torch.ones(2)}
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert_same_parameters(
        checkpoint.read_tensors(path), {name: t.numpy() for name, t in tensors.items()}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool])
def test_other_dtypes_are_named(saved, tmp_path, dtype):
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["rpn.logits.bias"] = tensors["rpn.logits.bias"].to(dtype)
    copy(saved, tmp_path, tensors)
    with pytest.raises(ValueError, match=r"expected one of F64, F32, F16, .* got 'B") as raised:
        checkpoint.load(tmp_path)
    named = f"{tmp_path}: model.safetensors: rpn.logits.bias.dtype"
    assert str(raised.value).startswith(named)


def rewrite(change):
    """Return a function that changes the header of a safetensors file, {name: entry}, in place."""

    def damage(path):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def shift(header):
    header["rpn.logits.bias"]["data_offsets"] = [
        offset + 4 for offset in header["rpn.logits.bias"]["data_offsets"]
    ]


def lengthen(header):
    header["rpn.logits.bias"]["shape"] = [40]


def negate(header):
    header["rpn.logits.weight"]["shape"] = [-3, -8, 1, 1]


def half(header):
    header["rpn.logits.bias"].pop("shape")


def cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


DAMAGE = {
    "truncated": (cut(-1), "bytes, but its header describes"),
    "nothing after the header": (cut(40000), "bytes, but its header describes"),
    "truncated header": (cut(100), "model.safetensors: header: no JSON"),
    "empty": (cut(0), "model.safetensors: header: no JSON"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"0"), "bytes, but its header describes"),
    "no header": (lambda p: p.write_bytes(b"\x80\2}q" * 9), "header: no JSON"),
    "a list": (lambda p: p.write_bytes((2).to_bytes(8, "little") + b"[]"), "expected dict"),
    "offsets": (rewrite(shift), r"rpn.logits.bias.data_offsets: \[\d+, \d+\], expected \["),
    "shape": (rewrite(lengthen), r"rpn.logits.bias.data_offsets: \[\d+, \d+\], expected \["),
    "negative shape": (rewrite(negate), "."),
    "half an entry": (rewrite(half), "rpn.logits.bias.shape: missing"),
    "missing tensor": (rewrite(lambda h: h.pop("rpn.logits.bias")), "data_offsets"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(saved, tmp_path, what):
    damage, message = DAMAGE[what]
    damage(copy(saved, tmp_path) / "model.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        checkpoint.load(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, tmp_path, name):
    (copy(saved, tmp_path) / name).unlink()
    with pytest.raises(ValueError, match=f"no {name}"):
        checkpoint.load(tmp_path)


def test_what_does_not_fit_is_named(saved, tmp_path):
    copy(saved, tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config.json: no JSON"):
        checkpoint.load(tmp_path)
    config.write_text(json.dumps(to_dict(CONFIG) | {"num_classes": 7}))
    with pytest.raises(ValueError, match=r"box_head.class_logits.weight has shape"):
        checkpoint.load(tmp_path)
    config.write_text(json.dumps(to_dict(CONFIG) | {"num_classes": "7"}))
    with pytest.raises(ValueError, match=r"config.num_classes: expected int"):
        checkpoint.load(tmp_path)


def test_needs_neither_torch_nor_safetensors(saved):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None;"
        f"from reference import checkpoint; print(checkpoint.load({str(saved)!r}))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.startswith("MaskRCNN("), done.stderr
