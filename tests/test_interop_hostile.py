"""Files of weights that would fill the memory or never end: refused, or read for what they hold."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from accelerated import interop
from accelerated.interop import files, pickle_machine, torch_files, unpickle

# The opcodes of a large array of bytes, left in the memo under 0, and of what makes an array of it.
RAW = b"\x80\x04B" + struct.pack("<I", 10_000) + bytes(10_000) + b"q\x000"
MAKE = (
    b"cnumpy._core.numeric\n_frombuffer\n(h\x00cnumpy\ndtype\n(\x8c\x02u1\x89\x88tRM\x10\x27\x85"
    b"\x8c\x01CtR"
)
# Lists and tuples that hold the one before twice, 60 deep: more items than anything visits.
LISTS = b"]q\x000" + b"](h\x00h\x00eq\x000" * 60 + b"h\x00"
TUPLES = b")q\x000" + b"(h\x00h\x00tq\x000" * 60 + b"h\x00"
A = b"X\x01\0\0\0a"

PROGRAMS = {
    "a dictionary of lists": (b"}" + A + LISTS + b"s.", "'a' is a list"),
    "lists": (LISTS + b".", "expected named tensors, got list"),
    "a list that holds itself": (b"]q\x00h\x00a.", "expected named tensors, got list"),
    "a dictionary that holds itself": (b"}q\x00X\x05\0\0\0modelh\x00s.", "'model' is a dict"),
    "tuples as a key": (b"}" + TUPLES + b"Ns.", "has a tuple as a key"),
    "tuples as a key of an ordered dictionary": (
        b"ccollections\nOrderedDict\n](" + TUPLES + b"Nla\x85R.",
        "has a tuple as a key",
    ),
    "tuples as a name": (TUPLES + A + b"\x93.", "it calls what has no name"),
    "tuples as a type": (b"cnumpy\ndtype\n(" + TUPLES + b"tR.", "arrays of type tuple"),
    "tuples as an encoding": (b"c_codecs\nencode\n(" + A + TUPLES + b"tR.", "text as tuple"),
    "tuples as a shape": (
        b"cnumpy._core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n(\x8c\x02u1tR"
        + TUPLES
        + b"\x8c\x01CtR.",
        "damaged",
    ),
    "tuples in a set": (b"\x8f(" + TUPLES + b"\x90.", "EMPTY_SET"),
    "tuples in a frozen set": (b"(" + TUPLES + b"\x91.", "FROZENSET"),
    "keys of the same hash": (
        b"}("
        + b"".join(
            b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(1, 100_000)
        )
        + b"u.",
        "has a int as a key",
    ),
    "a huge index of the memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "got list"),
    "a long integer": (b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20), "LONG4"),
    "digits": (b"I" + b"9" * 100_000 + b"\n.", "damaged"),
    "a length beyond the file": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.", "too early"),
    "a text beyond the file": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"a.", "too early"),
    "a negative length": (b"\x80\x02T\xff\xff\xff\xffa.", "too early"),
    "a frame beyond the file": (b"\x80\x04\x95" + b"\xff" * 8 + b"].", "got list"),
    "a bytearray of a trillion": (
        b"cbuiltins\nbytearray\n(\x8a\x06" + (10**12).to_bytes(6, "little") + b"tR.",
        "made of no bytes",
    ),
    "the same bytes in many arrays": (RAW + b"(" + MAKE * 1000 + b"l.", "4 times as large"),
    "the same text in many bytes": (
        b"X\x10\x27\0\0"
        + b"a" * 10_000
        + b"q\x000("
        + b"c_codecs\nencode\n(h\x00X\x06\0\0\0latin1tR" * 1000
        + b"l.",
        "4 times as large",
    ),
    "the same pairs in many dictionaries": (
        b"]("
        + b"(K\x00Nl" * 10_000
        + b"eq\x000("
        + b"ccollections\nOrderedDict\n(h\x00tR" * 9999
        + b"l.",
        "4 times as large",
    ),
    "a state for what has none": (b"ccollections\nOrderedDict\nNb.", "attributes"),
    "objects outside": (b"\x80\x02K\x01Q.", "outside of the file"),
    "a call of a text": (b"X\x01\0\0\0a)R.", "damaged"),
    "a name without an end": (b"c" + b"a" * 1000, "damaged"),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.timeout(60)
def test_a_pickle_that_means_harm(tmp_path, name):
    program, said = PROGRAMS[name]
    path = tmp_path / "weights.pkl"
    path.write_bytes(program)
    with pytest.raises(ValueError, match=said) as error:
        interop.load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    # The same program in both kinds of files of torch.save, after the three pickles of the older.
    head = b"".join(
        pickle.dumps(part, 2)
        for part in (torch_files.MAGIC, torch_files.PROTOCOL, {"little_endian": True})
    )
    (tmp_path / "older.pth").write_bytes(head + program)
    archive(tmp_path / "newer.pth", program)
    for other in ("older.pth", "newer.pth"):
        with pytest.raises(ValueError) as error:
            interop.load(tmp_path / other)
        assert other in str(error.value) and "\n" not in str(error.value)


def test_instructions_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "INSTRUCTIONS", 1000)
    (tmp_path / "a.pkl").write_bytes(b"(" + b"N" * 2000 + b"l.")
    with pytest.raises(ValueError, match=r"a\.pkl: refused: it has more than 1,000 instructions"):
        interop.load(tmp_path / "a.pkl")


def test_names_of_tensors_are_printed_in_one_line(tmp_path):
    for name in ("a\nb", "a" * 1000, "\ud800", "\x1b[2J"):
        (tmp_path / "weights.pkl").write_bytes(pickle.dumps({name: np.zeros(1)}))
        with pytest.raises(ValueError, match="is no name of a tensor") as error:
            interop.load(tmp_path / "weights.pkl")
        assert str(error.value).isprintable() and len(str(error.value)) < 300


def archive(path, program, **storages):
    """Write what torch.save writes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        for key, raw in storages.items():
            file.writestr(f"a/data/{key[1:]}", raw)
    return path


def tensor(size, stride, offset=0, numel=4, kind="FloatStorage"):
    """Return the pickle of one tensor {"a": tensor} on the storage "0"."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, Storage):
                return ("storage", getattr(torch, kind), "0", "cpu", numel)

        def reducer_override(self, item):
            if isinstance(item, Tensor):
                arguments = (Storage(), offset, tuple(size), tuple(stride), False, {})
                return torch._utils._rebuild_tensor_v2, arguments
            return NotImplemented

    class Tensor:
        pass

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Tensor()})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "stride", "said", "other"),
    [
        ([5], [1], "lies outside of its storage", {}),
        ([4], [1], "lies outside of its storage", {"offset": 1}),
        ([2, 2], [3, 1], "lies outside of its storage", {}),
        ([10**9, 10**9], [0, 0], "more than 4 times as large as the file", {}),
        ([2**40, 2**40], [0, 0], "more than 4 times as large as the file", {}),
        ([-1], [1], "-1 is no count", {}),
        ([2], [-1], "-1 is no count", {}),
        ([2], [1], "-1 is no count", {"offset": -1}),
        ([2], [1, 1], "damaged", {}),
        ([2.0], [1], "2.0 is no count", {}),
        ([True], [1], "True is no count", {}),
        ([5], [1], "a storage is shorter than it claims", {"numel": 5}),
        ([2], [1], "a storage is shorter than it claims", {"numel": 10**12}),
        ([2], [1], "a storage is shorter than it claims", {"kind": "DoubleStorage"}),
        ([1] * 100, [1] * 100, "damaged|not a Mask R-CNN", {}),
    ],
)
def test_a_tensor_that_claims_what_its_file_has_not(tmp_path, size, stride, said, other):
    path = archive(tmp_path / "a.pth", tensor(size, stride, **other), _0=bytes(16))
    with pytest.raises(ValueError, match=said) as error:
        interop.load(path)
    assert "\n" not in str(error.value)
    assert torch_files.load(archive(path, tensor([4], [1]), _0=bytes(16)))["a"].tolist() == [0] * 4


def test_many_names_of_one_tensor(tmp_path):
    whole = torch.zeros(1000)
    torch.save({f"a{k}": whole for k in range(100)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\d+: up to this tensor the file claims more than 4 ti"):
        interop.load(tmp_path / "a.pth")


def test_an_archive_that_means_harm(tmp_path):
    path, program = tmp_path / "a.pth", tensor([1], [1], numel=1 << 20)
    # A thousandth of what it expands to.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/data/0", bytes(4 << 20))
    with pytest.raises(ValueError, match="refused: an archive of more than 4 times its size"):
        interop.load(path)
    # Sizes that lie, in the directory: the member begins 46 bytes before its name.
    archive(path, tensor([4], [1]), _0=bytes(16))
    whole = path.read_bytes()
    where = whole.rindex(b"a/data/0") - 46
    for size in (15, 17, 60, 1 << 31):
        lying = bytearray(whole)
        lying[where + 24 : where + 28] = struct.pack("<I", size)
        path.write_bytes(lying)
        with pytest.raises(ValueError, match=r"not a file of tensors, or damaged|4 times its size"):
            interop.load(path)
    # Members that are the same bytes, as in bombs that need no nesting.
    entry = whole[where : where + 46 + len("a/data/0")]
    lying = bytearray(whole[:where] + entry * 1000 + whole[where + len(entry) :])
    struct.pack_into("<HHI", lying, len(lying) - 14, 1001, 1001, len(entry) * 1000 + 56)
    path.write_bytes(lying)
    with pytest.raises(ValueError):
        interop.load(path)
    # Another compression, which may need any memory.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a/data.pkl", program)
    with pytest.raises(ValueError, match=r"in a way that torch.save never uses"):
        interop.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("b.txt", "")
    with pytest.raises(ValueError, match=r"without data\.pkl"):
        interop.load(path)


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MEMBERS", 1)
    path = archive(tmp_path / "a.pth", tensor([4], [1]), _0=bytes(16))
    with pytest.raises(ValueError, match="or 1 members"):
        interop.load(path)


def test_the_older_format_that_means_harm(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert torch_files.load(path)["a"].tolist() == [0, 1, 2, 3]
    assert whole.count(b"K\x04N") == 1
    path.write_bytes(whole.replace(b"K\x04N", b"J\xff\xff\xff\x7fN"))
    with pytest.raises(ValueError, match="its storages are longer than the file"):
        interop.load(path)
    path.write_bytes(b"a".ljust(257, b"\0") + b"ustar".ljust(600, b"\0"))
    with pytest.raises(ValueError, match=r"refused: an archive of PyTorch 0\.1"):
        interop.load(path)


def test_safetensors_that_mean_harm(tmp_path):
    path = tmp_path / "a.safetensors"

    def header(text, data=b"\0" * 4):
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)

    entry = '"dtype":"F32","shape":[%s],"data_offsets":[0,%s]'
    for text in (
        "{}",
        "[]",
        "{" * 1000,
        f'{{"a":{{{entry % (10**9, 4)}}}}}',
        f'{{"a":{{{entry % (1, 10**12)}}}}}',
        f'{{"a":{{{entry % ("4294967296,4294967296", 4)}}}}}',
        f'{{"a":{{{entry % (-1, 4)}}}}}',
        f'{{"a":{{{entry % (1, 4)}}},"b":{{{entry % (1, 4)}}}}}',
        f'{{"a\\nb":{{{entry % (1, 4)}}}}}',
        '{"a":{"dtype":"F9","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F6_E2M3","shape":[2],"data_offsets":[0,4]}}',
    ):
        header(text)
        with pytest.raises(ValueError, match=r"a\.safetensors: ") as error:
            interop.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ValueError, match="damaged"):
        interop.load(path)


def test_the_limits_are_those_of_the_documentation():
    assert (pickle_machine.FACTOR, torch_files.FACTOR, files.FACTOR) == (4, 4, 4)


def test_memory_of_a_large_array(tmp_path):
    """No more than the file, its texts, bytes and arrays."""
    import tracemalloc

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.zeros(1 << 22, np.uint8)}, 4))
    tracemalloc.start()
    unpickle.load(tmp_path / "a.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.1 * (1 << 22)
