import pytest
import torch

from accelerated import backend as backends

CPU = torch.zeros(1)


@pytest.fixture(autouse=True)
def no_preference(monkeypatch):
    monkeypatch.delenv("MASKRCNN_BACKEND", raising=False)


def test_auto_is_torch_on_a_cpu():
    assert backends.resolve("auto", CPU) == "torch"


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu():
    assert backends.resolve("auto", CPU.cuda()) == "triton"


def test_the_environment_replaces_auto_and_nothing_else(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("MASKRCNN_BACKEND", "triton")
    assert backends.resolve("auto", CPU) == "triton"
    assert backends.resolve("torch", CPU) == "torch"


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.resolve("triton", CPU) == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        backends.resolve("triton", CPU)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert backends.resolve("auto", CPU) == "torch"
    with pytest.raises(RuntimeError, match="not installed"):
        backends.resolve("triton", CPU)


def test_an_unknown_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match="'cuda'"):
        backends.resolve("cuda", CPU)
    monkeypatch.setenv("MASKRCNN_BACKEND", "tritn")
    with pytest.raises(ValueError, match="'tritn'"):
        backends.resolve("auto", CPU)
