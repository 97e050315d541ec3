"""What a data set of COCO's size costs: time to open, memory, memory of each worker.

`PYTHONPATH=.:tests python -m support.coco_sized FOLDER` writes a file of the size of COCO's
instances_train2017.json (118,000 images, 860,000 objects, 440 MB) into a folder, unless it is
there, and prints the numbers of docs/numbers.md. It has no pictures.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

from accelerated.data.coco import CocoDataset

IMAGES, OBJECTS, CATEGORIES = 118_000, 860_000, 80
WORKERS, TOUCHED = 4, 3000


def write(path: Path) -> None:
    """Write the file: one object in a hundred is a crowd region, the others have polygons."""
    rng = np.random.default_rng(0)
    head = {
        "images": [
            {"license": 3, "file_name": f"{i:012}.jpg", "width": 640, "height": 480, "id": i}
            for i in range(1, IMAGES + 1)
        ],
        "categories": [
            {"supercategory": "thing", "id": k, "name": f"class {k}"}
            for k in range(1, CATEGORIES + 1)
        ],
    }
    # Two images in three have an object, as many as in an exponential distribution.
    share = rng.exponential(size=IMAGES)
    owners = np.sort(rng.choice(IMAGES, OBJECTS, p=share / share.sum())) + 1
    with path.open("w") as file:
        file.write(json.dumps(head, separators=(",", ":"))[:-1] + ',"annotations":[')
        for number, owner in enumerate(owners.tolist(), start=1):
            file.write(("," if number > 1 else "") + _annotation(rng, number, owner))
        file.write("]}")


def _annotation(rng, number, owner):
    crowd = number % 100 == 0
    radius = float(np.clip(rng.lognormal(3.2, 1), 2, 220))
    x, y = rng.uniform(radius, 640 - radius), rng.uniform(radius, 480 - radius)
    x1, y1 = max(0, int(x - radius)), max(0, int(y - radius))
    side = int(min(2 * radius, 639 - x1, 479 - y1)) + 1
    entry = {"area": round(3 * radius**2, 4), "iscrowd": int(crowd), "image_id": owner}
    if crowd:
        counts = [x1 * 480 + y1]
        for _ in range(side - 1):
            counts += [side, 480 - side]
        counts += [side, 640 * 480 - sum(counts) - side]
        segmentation = {"counts": counts, "size": [480, 640]}
        bbox = [x1, y1, side, side]
    else:
        polygons = []
        for part in range(int(rng.integers(1, 3))):
            turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(10, 26))))
            reach = radius * rng.uniform(0.7, 1, len(turns)) / (1 + part)
            points = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], axis=1)
            polygons.append(np.round(points, 2))
        points = np.concatenate(polygons)
        (a, b), (c, d) = points.min(axis=0), points.max(axis=0)
        bbox = [round(float(v), 2) for v in (a, b, c - a, d - b)]
        segmentation = [polygon.ravel().tolist() for polygon in polygons]
    entry |= {"bbox": bbox, "category_id": int(rng.integers(1, CATEGORIES + 1)), "id": number}
    return json.dumps({"segmentation": segmentation, **entry}, separators=(",", ":"))


def memory(pid: int | str = "self", file: str = "smaps_rollup") -> dict[str, float]:
    """Return the fields of a process's memory in MB."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    rows = [line.split() for line in lines if line.endswith("kB")]
    return {row[0].rstrip(":"): int(row[1]) / 1024 for row in rows}


def _touch(dataset, seed, done, leave):
    before = memory()
    started = time.perf_counter()
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:TOUCHED].tolist()
    objects = sum(len(dataset.target(index).labels) for index in chosen)
    seconds = time.perf_counter() - started
    done.put((os.getpid(), before, seconds, objects))
    leave.wait()


def measure(path: Path) -> None:
    """Open the file, touch it in workers, print."""
    imported = memory()["Rss"]
    started, clock = time.perf_counter(), time.process_time()
    dataset = CocoDataset(path, path.parent, open_images=False)
    seconds, clock = time.perf_counter() - started, time.process_time() - clock
    print(f"file {path.stat().st_size / 1e6:.0f} MB, problems {len(dataset.report.problems)}")
    print(f"opened in {seconds:.0f} s, of which processor {clock:.0f} s")
    print(f"memory before opening {imported:.0f} MB, peak {memory(file='status')['VmHWM']:.0f} MB")
    print(f"after opening {memory()['Rss']:.0f} MB")
    started = time.perf_counter()
    chosen = np.random.default_rng(9).permutation(len(dataset))[:TOUCHED].tolist()
    for index in chosen:
        dataset.target(index)
    print(f"target {(time.perf_counter() - started) / TOUCHED * 1e6:.0f} us")
    context = multiprocessing.get_context("fork")
    done, leave = context.Queue(), context.Event()
    arguments = [(dataset, seed, done, leave) for seed in range(WORKERS)]
    workers = [context.Process(target=_touch, args=a) for a in arguments]
    for worker in workers:
        worker.start()
    results = [done.get() for _ in workers]
    for pid, before, seconds, objects in sorted(results):
        now = memory(pid)
        print(
            f"worker: private {before['Private_Dirty']:.0f} -> {now['Private_Dirty']:.0f} MB,"
            f" PSS {now['Pss']:.0f} MB, {seconds:.1f} s, {objects} objects"
        )
    print(f"main: PSS {memory()['Pss']:.0f} MB, RSS {memory()['Rss']:.0f} MB")
    leave.set()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "instances.json"
    if not file.exists():
        write(file)
    measure(file)
