"""Examination of the machine: versions, devices, and which backend runs and why."""

import importlib
import os
import platform
from importlib import metadata

PACKAGES = (
    "numpy",
    "torch",
    "triton",
    "torchvision",
    "faster-coco-eval",
    "pillow",
    "safetensors",
    "matplotlib",
    "typer",
    "rich",
)
OPTIONAL = ("triton", "torchvision")


def versions() -> list[tuple[str, str]]:
    """List (name, version or "not installed") of Python, this project and the packages it uses."""
    return [
        ("python", platform.python_version()),
        ("maskrcnn-triton", _version("maskrcnn-triton")),
        *((name, _version(name)) for name in PACKAGES),
    ]


def missing() -> list[str]:
    """List the required packages that cannot be imported, each with the reason."""
    modules = {"pillow": "PIL", "faster-coco-eval": "faster_coco_eval"}
    return [
        f"{name}: {reason}"
        for name in PACKAGES
        if name not in OPTIONAL and (reason := import_error(modules.get(name, name)))
    ]


def import_error(name: str) -> str:
    """Return why `import name` fails; "" if it works."""
    try:
        importlib.import_module(name)
    # A broken installation may raise anything.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def devices() -> list[tuple[str, str]]:
    """List (name, description) of the CPU and of each GPU that PyTorch sees."""
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    rows = [("cpu", f"{_processor()}, {cores} cores; PyTorch uses {threads} threads")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory, capability = gpu.total_memory / 2**30, f"{gpu.major}.{gpu.minor}"
        rows.append(
            (f"cuda:{index}", f"{gpu.name}, {memory:.0f} GiB, compute capability {capability}")
        )
    return rows


def backends() -> list[tuple[str, str]]:
    """List (device, which backend "auto" selects there and why)."""
    import torch

    from accelerated import backend

    rows = []
    for name, _ in devices():
        tensor = torch.empty(0, device=name)
        try:
            selected = backend.resolve("auto", tensor)
            rows.append((name, f"{selected} ({_reason(selected, tensor.device.type)})"))
        except RuntimeError as error:
            rows.append((name, f"none: {error}"))
    return rows


def _reason(selected, device):
    if forced := os.environ.get("MASKRCNN_BACKEND"):
        return f"MASKRCNN_BACKEND={forced}"
    if selected == "triton":
        return "a GPU, and Triton can be imported"
    if device == "cpu":
        return "default on a CPU; for tests, TRITON_INTERPRET=1 interprets Triton kernels"
    return f"Triton cannot be imported: {import_error('triton')}"


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
