"""Triton compiles each kernel a few times, whatever the shapes of the batches of a training are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]


def test_few_variants_over_the_shapes_of_coco():
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, ROOT / "tests/support/compilations.py", "3000"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["shapes"] > 100
    for variants in found["variants"].values():
        # One for the box head's 7 x 7 bins and one for the mask head's 14 x 14.
        assert variants["_roi_align_forward_kernel"] == 2
        align = sum(n for name, n in variants.items() if "roi_align" in name or "order" in name)
        assert align <= 12, variants
        assert sum(n for name, n in variants.items() if "roi_pool" in name) <= 12, variants
        others = {name: n for name, n in variants.items() if "roi" not in name}
        assert len(others) == 4 and max(others.values()) <= 2, variants
