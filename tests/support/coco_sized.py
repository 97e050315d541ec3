"""What a data set of COCO's size costs: time to open it, and memory, also of worker processes.

`PYTHONPATH=.:tests python -m support.coco_sized FOLDER [IMAGES OBJECTS WORKERS]` writes a file
without pictures into a folder, unless it is there, and prints the numbers of docs/numbers.md. By
default it is as large as COCO's instances_train2017.json.
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from accelerated.data.coco import CocoDataset

IMAGES, OBJECTS, WORKERS, CATEGORIES = 118_000, 860_000, 4, 80
# Numbers of images after whose targets the memory of a worker is measured.
TOUCHED = (1000, 3000, 12000)


def write(path: Path, images: int, objects: int) -> None:
    """Write the file: one object in a hundred is a crowd region, the others have polygons."""
    rng = np.random.default_rng(0)
    head = {
        "images": [
            {"license": 3, "file_name": f"{i:012}.jpg", "width": 640, "height": 480, "id": i}
            for i in range(1, images + 1)
        ],
        "categories": [
            {"supercategory": "thing", "id": k, "name": f"class {k}"}
            for k in range(1, CATEGORIES + 1)
        ],
    }
    # Few images have many objects, as in COCO.
    share = rng.exponential(size=images)
    owners = np.sort(rng.choice(images, objects, p=share / share.sum())) + 1
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


def _touch(dataset, seed):
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    for number, index in enumerate(order, start=1):
        dataset.target(index)
        if number in TOUCHED:
            now = memory()
            private, shared = now["Private_Dirty"], now["Pss"]
            print(f"worker, {number} targets: private {private:.0f} MB, PSS {shared:.0f} MB")
        if number == max(TOUCHED):
            break


def measure(path: Path, workers: int) -> None:
    """Open the file, touch it in workers, print."""
    imported = memory()["Rss"]
    started, clock = time.perf_counter(), time.process_time()
    dataset = CocoDataset(path, path.parent, open_images=False)
    seconds, clock = time.perf_counter() - started, time.process_time() - clock
    print(f"file {path.stat().st_size / 1e6:.0f} MB, problems {len(dataset.report.problems)}")
    print(f"opened in {seconds:.0f} s, of which processor {clock:.0f} s")
    print(f"memory before opening {imported:.0f} MB, peak {memory(file='status')['VmHWM']:.0f} MB")
    print(f"after opening {memory()['Rss']:.0f} MB")
    clock, count = time.process_time(), min(1000, len(dataset))
    for index in range(count):
        dataset.target(index)
    print(f"a target takes {(time.process_time() - clock) / count * 1e3:.2f} ms", flush=True)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_touch, args=(dataset, k)) for k in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    folder, (images, objects, workers) = Path(sys.argv[1]), (IMAGES, OBJECTS, WORKERS)
    if len(sys.argv) > 2:
        images, objects, workers = map(int, sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{images}_{objects}.json"
    if not file.exists():
        write(file, images, objects)
    measure(file, workers)
