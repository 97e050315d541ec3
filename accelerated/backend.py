"""The choice between the implementations of an operator, Triton and plain PyTorch.

A choice that cannot run raises an error; nothing falls back silently.
"""

import importlib
import importlib.util
import os
from types import ModuleType

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
FOLDERS = {"triton": "triton", "torch": "eager"}


def resolve(backend: str, tensor: torch.Tensor) -> str:
    """Return "triton" or "torch" for an operator on `tensor`.

    "auto"    Triton on CUDA where it is installed, otherwise PyTorch; the environment variable
              MASKRCNN_BACKEND replaces "auto"
    "torch"   plain PyTorch, on any device
    "triton"  RuntimeError where it cannot run; on a CPU it needs TRITON_INTERPRET=1
    """
    if backend == "auto":
        backend = os.environ.get("MASKRCNN_BACKEND", "auto")
    if backend == "auto":
        return "triton" if HAS_TRITON and tensor.is_cuda else "torch"
    if backend not in FOLDERS:
        raise ValueError(f"backend: expected 'auto', 'torch' or 'triton', got {backend!r}")
    if backend == "triton":
        if not HAS_TRITON:
            raise RuntimeError("backend 'triton': the package triton is not installed; use 'torch'")
        if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                f"backend 'triton' on {tensor.device}: set TRITON_INTERPRET=1 to interpret the"
                " kernels, or use 'torch'"
            )
    return backend


def kernels(operator: str, backend: str, tensor: torch.Tensor) -> ModuleType:
    """Import the module of `accelerated.kernels` that implements an operator on `tensor`."""
    folder = FOLDERS[resolve(backend, tensor)]
    return importlib.import_module(f"accelerated.kernels.{folder}.{operator}")
