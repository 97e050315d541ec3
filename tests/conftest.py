"""Set up all tests: interpreted Triton, reproducible hypothesis, golden files, GPU marker."""

import contextlib
import hashlib
import os
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from support import loopback

from accelerated.command_line import cli
from accelerated.interop import zoo

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

settings.register_profile(
    "project",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """`-m gpu` selects the tests marked so and, where there is a GPU, all that run on `device`."""
    gpu_wanted = torch.cuda.is_available() or os.environ.get("REQUIRE_GPU") == "1"
    for item in items:
        if "gpu" in item.keywords and not gpu_wanted:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if "device" in getattr(item, "fixturenames", ()) and gpu_wanted:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def golden():
    """golden("tv_ops_subset") -> the arrays of tests/golden/tv_ops_subset.npz."""

    def load(name):
        return np.load(Path(__file__).parent / "golden" / f"{name}.npz")

    return load


@pytest.fixture(scope="session")
def shared_golden():
    """shared_golden("tv_ops") -> the complete golden file; skips where it is not at hand."""

    def load(name):
        path = SHARED / "golden" / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path.name} is not at hand")
        return np.load(path)

    return load


@pytest.fixture(scope="session")
def shared_data():
    """shared_data("nuclei") -> folder of a real data set; skips where it is not at hand."""

    def find(name):
        path = SHARED / "data" / name
        if not path.exists():
            pytest.skip(f"{name} is not at hand")
        return path

    return find


@pytest.fixture
def rng(request):
    """A generator seeded by the test's own name, so that tests stay independent of their order."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    """Both backends of accelerated/; Triton interpreted on a CPU."""
    return request.param


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def command(monkeypatch, capfd):
    """Return a function: command("doctor") -> (exit code, standard output, standard error)."""
    for name in (
        "MASKRCNN_BACKEND",
        "MASKRCNN_DEBUG",
        "GOMP_SPINCOUNT",
        "OPENBLAS_THREAD_TIMEOUT",
        "OPENBLAS_NUM_THREADS",
    ):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["maskrcnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capfd.readouterr()

    return call


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of published weights, and no network."""
    monkeypatch.setenv("MASKRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKRCNN_WEIGHTS_MIRROR", "http://127.0.0.1:9")
    return tmp_path / "cache"


@pytest.fixture
def publish(monkeypatch, cache):
    """Return a function: publish(content, "coco") serves it under this name, digest included.

    It returns the server and the path in the cache.
    """
    with contextlib.ExitStack() as stack:

        def start(content, name="coco"):
            entry = zoo.ENTRIES[name]
            algorithm = entry.digest.partition(":")[0]
            digits = hashlib.new(algorithm, content).hexdigest()[:8]
            entry = replace(entry, digest=f"{algorithm}:{digits}")
            monkeypatch.setitem(zoo.ENTRIES, name, entry)
            server = stack.enter_context(loopback.serving({entry.file_name: content}))
            monkeypatch.setenv("MASKRCNN_WEIGHTS_MIRROR", server.address)
            return server, cache / entry.file_name

        yield start
