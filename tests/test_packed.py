"""data.packed: the arrays hold what the reader found, and nothing per object beside them."""

import gc
import json
import types

import numpy as np
import pytest

from accelerated.data import annotations, lint
from accelerated.data.coco import CocoDataset
from accelerated.engine import fingerprint

SIZE = {"width": 60, "height": 40}
TRIANGLE, SQUARE = [5, 5, 20, 5, 5.5, 20.25], [30, 10, 50, 10, 50, 30, 30, 30]
RUNS = {"size": [40, 60], "counts": [0, 400, 2000]}
OBJECTS = [
    {"category_id": 9, "bbox": [5, 5, 45, 25], "segmentation": [TRIANGLE, SQUARE]},
    {"category_id": 4, "bbox": [0, 0, 10, 40], "segmentation": RUNS, "area": 7.5},
    {"category_id": 4, "bbox": [0, 0, 10, 40], "segmentation": RUNS, "iscrowd": 1},
    {"category_id": 4, "bbox": [5, 5, 15, 15.25], "segmentation": [TRIANGLE]},
]


def written(path, objects_of):
    """Write a file of images that have some of OBJECTS, given by their indices."""
    entries = [
        {"id": number, "image_id": image, "iscrowd": 0} | OBJECTS[k]
        for number, (image, k) in enumerate(
            (image, k) for image, found in enumerate(objects_of, start=100) for k in found
        )
    ]
    images = [
        {"id": number, "file_name": f"{number}.png", **SIZE}
        for number, _ in enumerate(objects_of, start=100)
    ]
    categories = [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}]
    content = {"images": images, "annotations": entries, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def opened(path):
    return CocoDataset(path, path.parent, open_images=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("category_id", 4),
        ("iscrowd", 1),
        ("area", 7.75),
        ("segmentation", [TRIANGLE, [*SQUARE[:-1], 30.5]]),
        ("segmentation", [[*TRIANGLE, *SQUARE]]),
        ("segmentation", {"size": [40, 60], "counts": [0, 401, 1999]}),
    ],
)
def test_a_changed_annotation_changes_the_checksum_of_its_image(key, value, tmp_path):
    path = written(tmp_path / "data.json", [[0, 2], [0, 1], []])
    dataset = opened(path)
    before, part = fingerprint.of(dataset), fingerprint.of(dataset.subset([2, 1]))
    assert before.objects == 3 and part.objects == 2
    content = json.loads(path.read_text())
    content["annotations"][2][key] = value
    path.write_text(json.dumps(content))
    after, digits = fingerprint.of(opened(path)), fingerprint.DIGITS
    first, second, third = (slice(k * digits, (k + 1) * digits) for k in range(3))
    assert before.checksums[second] != after.checksums[second]
    for same in (first, third):
        assert before.checksums[same] == after.checksums[same]
    # The checksum of an image does not depend on the others.
    assert part.checksums == before.checksums[third] + before.checksums[second]


def assert_holds(dataset, records):
    """The data set has what was read of the images, in their order."""
    assert len(dataset) == len(records)
    truth, listed = iter(dataset.coco["annotations"]), iter(dataset.instances())
    for index, record in enumerate(records):
        target = dataset.target(index)
        for instance in record.instances:
            entry = next(truth)
            assert entry["segmentation"]["counts"] == instance.counts.decode()
            assert (entry["image_id"], entry["category_id"]) == (record.id, instance.category_id)
            assert next(listed) == (index, instance.category_id, instance.area, instance.crowd)
            x1, y1, x2, y2 = instance.box
            assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        boxes = np.array([instance.box for instance in record.objects], dtype=np.float32)
        np.testing.assert_array_equal(target.boxes, boxes.reshape(-1, 4))
        ids = [dataset.category_ids[label - 1] for label in target.labels]
        assert ids == [instance.category_id for instance in record.objects]
        for outlines, instance in zip(target.polygons, record.objects, strict=True):
            assert (outlines is None) == (instance.polygons is None)
            for a, b in zip(outlines or (), instance.polygons or (), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == np.float64
    assert next(truth, None) is next(listed, None) is None
    assert dataset.max_objects == max(len(record.objects) for record in records)
    points = [
        sum(len(p) for instance in record.objects for p in instance.polygons or ())
        for record in records
    ]
    assert dataset.max_points == max(points)
    assert dataset.outlined == all(i.polygons for record in records for i in record.objects)


@pytest.mark.parametrize(
    "objects_of",
    [[[0, 1, 2, 3], [], [3], [2], [0, 0]], [[3], [0, 3]], [[], [2]], [[]], [[1], [], []]],
)
def test_the_arrays_hold_what_was_read(tmp_path, objects_of):
    path = written(tmp_path / "a.json", objects_of)
    records = list(annotations.read(path)[0].images.values())
    whole = opened(path)
    assert_holds(whole, records)
    for chosen in ([len(records) - 1, 0], [0], [len(records) - 1]):
        part = whole.subset(chosen)
        assert part.annotations is whole.annotations, "a part shares the arrays"
        assert_holds(part, [records[index] for index in chosen])
        assert_holds(part.subset([0]), [records[chosen[0]]])


def test_real_data_is_held(shared_data):
    folder = shared_data("coco_tiny")
    records = list(annotations.read(folder / "val.json")[0].images.values())
    assert_holds(CocoDataset(folder / "val.json", folder / "images", open_images=False), records)


def objects_behind(root):
    """Count the objects of Python that a data set refers to."""
    seen, waiting = {}, [root]
    while waiting:
        found = waiting.pop()
        if id(found) not in seen and not isinstance(found, type | types.ModuleType):
            seen[id(found)] = found
            waiting += gc.get_referents(found)
    return len(seen)


def test_workers_share_all_that_grows_with_the_objects(tmp_path):
    """Processes share arrays; of each object of Python they would come to hold a copy."""
    few = opened(written(tmp_path / "few.json", [[0, 1], [3]]))
    many = opened(written(tmp_path / "many.json", [[0, 1] * 40, [3] * 30]))
    # The warnings, one for each repeated object.
    few.report = many.report = lint.Report([], 0, 0)
    assert len(many.instances()) > 20 * len(few.instances())
    assert objects_behind(many) <= objects_behind(few) + 5
