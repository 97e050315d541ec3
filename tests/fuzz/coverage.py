"""python -m fuzz.coverage KIND: damaged files of a kind under atheris, which seeks new branches.

atheris comes with `pip install -e .[fuzz]`. What follows KIND are options of libFuzzer, such as
-runs=100000 or -seed=1.
"""

import os
import sys
import tempfile
from pathlib import Path

# Installed by those who want it; the tests do without.
import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["accelerated", "reference"]):
    from fuzz.runner import ACCEPTED, REFUSED, outcome
    from fuzz.targets import TARGETS


def main():
    kind, *options = sys.argv[1:]
    target, folder = TARGETS[kind], Path(tempfile.mkdtemp())
    target.prepare(folder)
    seeds = Path(tempfile.mkdtemp())
    for index, seed in enumerate(target.seeds()):
        (seeds / str(index)).write_bytes(seed)
    os.chdir(folder)

    def read(data):
        found = outcome(target, folder, data)
        if found not in (ACCEPTED, REFUSED):
            raise RuntimeError(found)

    atheris.Setup([sys.argv[0], *options, str(seeds)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
