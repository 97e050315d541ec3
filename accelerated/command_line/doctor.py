"""What this machine has: versions, devices, and which backend runs and why. Nothing is compiled, nothing is changed."""

import importlib
import os
import platform
from importlib import metadata

PACKAGES = (
    "numpy",
    "torch",
    "triton",
    "torchvision",
    "pycocotools",
    "pillow",
    "safetensors",
    "matplotlib",
    "typer",
    "rich",
)
OPTIONAL = ("triton", "torchvision")


def versions() -> list[tuple[str, str]]:
    """(name, version or "not installed") of Python, of ourselves and of every package we use."""
    return [
        ("python", platform.python_version()),
        ("maskrcnn-triton", _version("maskrcnn-triton")),
        *((name, _version(name)) for name in PACKAGES),
    ]


def missing() -> list[str]:
    """Required packages that do not import, each with the reason."""
    modules = {"pillow": "PIL"}
    return [
        f"{name}: {reason}"
        for name in PACKAGES
        if name not in OPTIONAL and (reason := import_error(modules.get(name, name)))
    ]


def import_error(name: str) -> str:
    """Why `import name` fails; "" when it works."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation raises anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def devices() -> list[tuple[str, str]]:
    """(name, description) of the CPU and of each GPU PyTorch sees."""
    import torch

    found = [
        (
            "cpu",
            f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used by PyTorch",
        )
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            (
                f"cuda:{index}",
                f"{device.name}, {device.total_memory / 2**30:.0f} GiB, compute capability {device.major}.{device.minor}",
            )
        )
    return found


def backends() -> list[tuple[str, str]]:
    """(device, which backend "auto" means there and why)."""
    import torch

    from accelerated import backend

    rows = []
    for name, _ in devices():
        tensor = torch.empty(0, device=name)
        try:
            chosen, reason = backend.resolve("auto", tensor), ""
        except RuntimeError as error:
            chosen, reason = "none", str(error)
        rows.append(
            (name, chosen + (f": {reason}" if reason else f" ({_why(chosen, tensor.device.type)})"))
        )
    return rows


def _why(chosen, device):
    if forced := os.environ.get("MASKRCNN_BACKEND"):
        return f"MASKRCNN_BACKEND={forced}"
    if chosen == "triton":
        return "a GPU, and Triton imports"
    if device == "cpu":
        return "Triton runs on a CPU only interpreted, for tests: TRITON_INTERPRET=1 and --backend triton"
    return f"Triton does not import: {import_error('triton')}"


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
