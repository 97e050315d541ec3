"""Pickles of arrays and files of torch.save are read; anything else is refused and not executed."""

import collections
import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from accelerated import interop
from accelerated.interop import torch_files, unpickle
from accelerated.verify.equality import assert_equal

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2)),
    "big": np.arange(3, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "int": np.array([-1, 1 << 40]),
    "bool": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
    "zero_dimensional": np.array(7),
    "scalar": np.float32(1.5),
    "view": np.arange(10.0)[::3],
}


def pickled(value, path, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers(tmp_path, protocol):
    value = OrderedDict(
        model=dict(ARRAYS), rest=[1, 2.5, None, True, ("text", b"bytes", bytearray(b"more"))]
    )
    loaded = unpickle.load(pickled(value, tmp_path / "file.pkl", protocol))
    assert loaded["rest"] == value["rest"]
    for name, array in ARRAYS.items():
        assert (
            loaded["model"][name].dtype == array.dtype.newbyteorder("=")
            and loaded["model"][name].shape == array.shape
        )
        assert_equal(loaded["model"][name], array, name)
    assert all(loaded["model"][n].flags.writeable for n in ARRAYS if n != "scalar")


def test_python_2(tmp_path):
    """Byte strings of Python 2 with numbers, as in Caffe2's files, opcode by opcode."""
    raw = np.array([1.0, -2.0, np.pi], np.float32).tobytes()
    assert any(byte > 127 for byte in raw)

    def text(x):
        return b"U" + struct.pack("<B", len(x)) + x

    array = b"".join(
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR",
            b"(I1\n(I3\ntcnumpy\ndtype\n("
            + text(b"f4")
            + b"I0\nI1\ntR(I3\n"
            + text(b"<")
            + b"NNNI-1\nI-1\nI0\ntb",
            b"I00\n" + text(raw) + b"tb",
        )
    )
    path = tmp_path / "python2.pkl"
    path.write_bytes(b"\x80\x02}" + text(b"conv1_w") + array + b"s.")
    assert_equal(unpickle.load(path)["conv1_w"], np.array([1.0, -2.0, np.pi], np.float32))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_runs(tmp_path):
    """Refused by name, also inside a checkpoint; the file it would have made is not there."""
    sprung = tmp_path / "sprung"
    for trap, name in (
        (Call(os.system, f"touch {sprung}"), "(posix|nt).system"),
        # The module is "io", or "_io" since Python 3.13.
        (Call(open, str(sprung), "w"), rf"{open.__module__}\.open"),
        (Call(eval, f"open({str(sprung)!r}, 'w')"), "__builtin__.eval"),
        (torch.zeros(1), "torch._utils._rebuild_tensor_v2"),
        ({1, 2}, "__builtin__.set"),
    ):
        for content in (trap, {"model": {"a": np.zeros(2), "b": trap}}):
            path = pickled(content, tmp_path / "trap.pkl")
            with pytest.raises(
                ValueError,
                match=rf"trap.pkl: refused: it would call ({name}),.*Nothing was exec.*safetensors",
            ):
                interop.load(path)
    torch.save({"model": {"b": Call(os.system, f"touch {sprung}")}}, tmp_path / "trap.pth")
    with pytest.raises(
        ValueError,
        match=r"trap.pth: refused: it would call (posix|nt).system, .* Nothing was executed",
    ):
        interop.load(tmp_path / "trap.pth")
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Call(os.system, f"touch {sprung}")))
    assert sprung.exists(), "the trap must be a real one"


@pytest.mark.parametrize(
    "value, what",
    [
        (np.array([{}, "x"], dtype=object), "object arrays"),
        (np.array(["text"]), "'U4'"),
        (np.zeros(2, [("a", "f4")]), "'V4'"),
        (np.array(["2020-01-01"], "M8[D]"), "'M8'"),
        (np.zeros(2, complex), "'c16'"),
    ],
)
def test_arrays_of_anything_else(tmp_path, value, what):
    with pytest.raises(ValueError, match=f"it contains .*{what}.*only numbers"):
        unpickle.load(pickled({"a": value}, tmp_path / "file.pkl"))


def test_a_forged_dtype_is_not_believed(tmp_path):
    """Objects declared as numbers by the dtype's state, or the reverse: the code alone counts."""

    class Forged(pickle.Pickler):
        def reducer_override(self, item):
            if isinstance(item, np.dtype):
                return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)
            return NotImplemented

    stream = io.BytesIO()
    Forged(stream, 4).dump({"a": np.arange(3.0)})
    (tmp_path / "forged.pkl").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="object arrays"):
        unpickle.load(tmp_path / "forged.pkl")


def test_damaged(tmp_path):
    """Cut anywhere, or no pickle at all: one ValueError that names the file."""
    whole = pickle.dumps({"model": {"a": np.arange(50.0), "b": np.ones(3)}}, 2)
    path = tmp_path / "cut.pkl"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pkl: not a pickle, or damaged"):
            interop.load(path)
    torch.save({"a": torch.zeros(300)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut.pth: not a file of tensors, or damaged"):
        interop.load(tmp_path / "cut.pth")
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    path.write_bytes(deep)
    with pytest.raises(ValueError, match="expected named tensors, got list"):
        interop.load(path)


VIEW = torch.arange(12.0).view(3, 4)
TENSORS = {
    **{f"{t}": torch.arange(5).to(t) for t in set(torch_files.STORAGES.values())},
    "transposed": VIEW.T,
    "inner": VIEW[1:, 2],
    "expanded": torch.ones(2, 1).expand(2, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "empty": torch.zeros(0, 3),
    "number": torch.tensor(7.0),
}
REST = {
    "epoch": 3,
    "rate": np.float64(0.5),
    "seen": {1, 2},
    "where": torch.device("cpu"),
    "counted": collections.Counter("aab"),
    "shape": torch.Size([1, 2]),
    "type": torch.float32,
    "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "groups": [{"lr": 0.1}]},
}


@pytest.mark.parametrize("older", [False, True])
def test_what_torch_saves(tmp_path, older):
    """The same as `torch.load` reads, from archives and from the older format."""
    path = tmp_path / "file.pth"
    torch.save(
        {"model": OrderedDict(TENSORS)} | REST, path, _use_new_zipfile_serialization=not older
    )
    loaded = torch_files.load(path)
    assert loaded.keys() == {"model", *REST} and loaded["epoch"] == 3 and loaded["rate"] == 0.5
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], torch.ones(2))
    assert loaded["model"].keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded["model"][name].dtype == tensor.dtype, name
        assert torch.equal(loaded["model"][name], tensor), name
    # Also compressed by somebody's archiver.
    if not older:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "z.pth", "w", 8) as z:
            for name in archive.namelist():
                z.writestr(name, archive.read(name))
        assert torch.equal(torch_files.load(tmp_path / "z.pth")["model"]["inner"], VIEW[1:, 2])


def test_an_older_view_of_a_storage(tmp_path):
    """Files from before PyTorch 1.0 may say which part of a storage a tensor sees."""
    path = tmp_path / "file.pth"
    torch.save({"a": torch.arange(9.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    # The count of elements and None, its part; then the tensor's offset and shape.
    old = rb"K\tN(tq.QK)\x00(K\t\x85q.)"
    new, count = re.subn(
        old,
        lambda m: b"K\t(U\x01vK\x02K\x04t" + m[1] + b"\0K\x04" + m[2][2:],
        whole,
        flags=re.DOTALL,
    )
    assert count == 1
    path.write_bytes(new)
    assert torch_files.load(path)["a"].tolist() == [2, 3, 4, 5]


def test_what_is_no_state_dict(tmp_path):
    with pytest.raises(ValueError, match=r"list.pkl: expected named tensors, got list"):
        interop.load(pickled([np.zeros(3)], tmp_path / "list.pkl"))
    with pytest.raises(ValueError, match=r"text.pkl: expected named tensors, but 'b' is a str"):
        interop.load(pickled({"model": {"a": np.zeros(3), "b": "x"}}, tmp_path / "text.pkl"))
