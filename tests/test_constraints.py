"""The two ends of the supported versions are what pyproject.toml declares."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
RANGES = {r.name: r.specifier for r in DECLARED if "==" not in str(r.specifier)}


def pins(name):
    """{package: version} of a file in tests/constraints."""
    lines = (ROOT / "tests" / "constraints" / f"{name}.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    return {r.name: next(iter(r.specifier)).version for r in pinned}


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {
        name: next(s.version for s in specifier if s.operator == ">=")
        for name, specifier in RANGES.items()
    }
    padded = {name: (version + ".0.0").split(".")[:3] for name, version in bounds.items()}
    assert {name: version.split(".") for name, version in pins("oldest").items()} == padded


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_every_pin_lies_in_its_range(end):
    pinned = pins(end)
    assert pinned.keys() == RANGES.keys()
    assert all(version in RANGES[name] for name, version in pinned.items())


def test_pre_commit_runs_the_declared_ruff():
    declared = {str(r) for r in DECLARED if r.name == "ruff"}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==[\d.]+", hooks)) == declared
