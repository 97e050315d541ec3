"""What augmentation costs: PYTHONPATH=.:tests python -m support.augmentation_costs

Milliseconds of processor time for an image of 640x480 pixels, with few and with many objects.
"""

import time

import numpy as np

from accelerated.data.augment import augment
from reference.config import override, preset
from support.scenes import scene

SWITCHES = {
    "`flip`": ["augment.flip=1"],
    "`flip_vertical`": ["augment.flip_vertical=1"],
    "`quarter_turns`": ["augment.quarter_turns=1"],
    "`scale`, from 1 to 2": ["augment.scale=[1, 2]"],
    "`brightness`, `contrast`, `saturation`": [
        "augment.brightness=0.4",
        "augment.contrast=0.4",
        "augment.saturation=0.4",
    ],
    "`hue`": ["augment.hue=0.1"],
    "`mosaic`": ["augment.mosaic=1"],
    "`copy_paste`": ["augment.copy_paste=1"],
}


def cost(changes, sample, others, repeats=12):
    """Return the median milliseconds of an augmentation, without reading images."""
    config = override(preset("small"), "augment.flip=0", *changes)
    times = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        start = time.process_time()
        augment(*sample, config, rng, lambda rng: others[rng.integers(len(others))])
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times))


if __name__ == "__main__":
    counts = 8, 100
    images = {n: [scene(seed, 480, 640, n) for seed in range(4)] for n in counts}
    for name, changes in SWITCHES.items():
        row = (f"{cost(changes, images[n][0], images[n][1:]):.1f}" for n in counts)
        print(f"| {name} | {' | '.join(row)} |")
