"""Trainings that are killed at any moment go on as if nothing had been."""

import os
import subprocess
import sys
from pathlib import Path

from support import kills

ROOT = Path(__file__).parents[1]


def test_killed_trainings_go_on_bit_for_bit():
    """One kill of each of two kinds; `make kills` does a hundred, of all."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # Its processes are forked, which this one, with its threads, should not be.
    done = subprocess.run(
        [sys.executable, "-m", "support.kills", "2"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"killed {kind}" for kind in list(kills.KINDS)[:2]
    ]
