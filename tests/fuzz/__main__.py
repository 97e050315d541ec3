"""python -m fuzz: read many damaged files of every kind, and report what failed."""

import argparse
import sys
import tempfile
from pathlib import Path

from fuzz.runner import make, run
from fuzz.targets import TARGETS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    arguments = parser.parse_args()
    names = [name for name in TARGETS if arguments.only in name]
    each, failed = -(-arguments.inputs // len(names)), 0
    print(f"{'kind':20}{'inputs':>8}{'refused':>9}{'accepted':>10}{'failed':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            result = run(name, each, Path(folder), arguments.seed)
            counts, failed = result.counts, failed + len(result.failures)
            numbers = f"{each:8}{counts['refused']:9}{counts['accepted']:10}"
            print(f"{name:20}{numbers}{len(result.failures):8}", flush=True)
            for index, what in result.failures[:5]:
                print(f"    input {index}: {what}")
            for index, _ in result.failures if arguments.keep else ():
                target = TARGETS[name]
                kept = arguments.keep / name.replace(" ", "_")
                kept.mkdir(parents=True, exist_ok=True)
                data = make(target, target.seeds(), arguments.seed, index)
                (kept / f"{arguments.seed}-{index}").write_bytes(data)
    print(f"{each * len(names)} inputs, {failed} failures")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
