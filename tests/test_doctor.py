"""The examination of the machine: what is installed, what is missing, and why a backend runs."""

import torch

from accelerated.command_line import doctor


def test_versions_and_what_is_missing(monkeypatch):
    versions = dict(doctor.versions())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "numpy" in versions and "triton" in versions
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no_such_package"))
    assert doctor.missing() == [
        "no_such_package: ModuleNotFoundError: No module named 'no_such_package'"
    ]
    assert dict(doctor.versions())["no_such_package"] == "not installed"


def test_backends_say_why(monkeypatch):
    monkeypatch.delenv("MASKRCNN_BACKEND", raising=False)
    assert doctor.backends()[0][0] == "cpu"
    assert doctor.backends()[0][1].startswith("torch (")
    monkeypatch.setenv("MASKRCNN_BACKEND", "torch")
    assert doctor.backends()[0][1] == "torch (MASKRCNN_BACKEND=torch)"
    monkeypatch.setenv("MASKRCNN_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert doctor.backends()[0][1].startswith("none: ")
