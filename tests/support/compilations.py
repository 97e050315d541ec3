"""Count how many variants of each Triton kernel batches of many shapes ask for; print them as JSON.

It runs in a process of its own, in which Triton is not interpreted. A driver that claims a chip
takes the place of a GPU's, and a hook takes the place of the compiler: it is told the key of every
variant that Triton would compile. Tensors have no memory.
"""

import json
import random
import sys
from collections import defaultdict

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from accelerated.kernels.arguments import Pooling, Sampling
from accelerated.kernels.triton import masks, nms, roi_align, roi_pool
from accelerated.transform import resized_shape
from reference.config import preset

# Heights and widths of COCO's images, each as often as among a hundred of them.
SIZES = {
    (480, 640): 38, (640, 480): 19, (427, 640): 9, (426, 640): 4, (425, 640): 3, (640, 427): 4,
    (640, 428): 2, (500, 375): 2, (375, 500): 4, (640, 640): 2, (333, 500): 2,
}  # fmt: skip
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


class Chip:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def batch_shape(generator, images):
    """Return height and width of a batch: a short side of 640 to 800, padded to multiples of 32."""
    transform, shapes = preset("torchvision_r50_fpn").transform, []
    wide = generator.random() < 0.7
    while len(shapes) < images:
        height, width = generator.choices([*SIZES], [*SIZES.values()])[0]
        if generator.random() < 0.15:
            height, width = generator.randint(300, 640), 640
        if (width >= height) == wide:
            short = generator.choice([640, 672, 704, 736, 768, 800])
            shapes.append(resized_shape(height, width, short, transform))
    return tuple(-(-max(sides) // 32) * 32 for sides in zip(*shapes, strict=True))


def step(images, height, width, memory_format):
    """Launch what a training step and a detection on a batch launch, with tensors of the batch."""

    def empty(*shape, dtype=torch.float32, **keywords):
        return torch.empty(shape, dtype=dtype, device="meta", **keywords)

    layout = {"dtype": torch.bfloat16, "memory_format": memory_format}
    sides = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    features = [empty(images, 256, *side, **layout) for side in sides]
    for size, rois in ((7, images * 512), (14, images * 128)):
        index = empty(rois, dtype=torch.int64)
        regions = empty(rois, 4), index, index, SCALES, [size, size]
        out = empty(rois, 256, size, size, **layout)
        sampling = Sampling(*regions, 2, False)
        roi_align.forward(features, sampling, out, None)
        roi_align.backward(out, None, sampling, features)
        argmax = torch.empty_like(out, dtype=torch.int32)
        roi_pool.forward(features, Pooling(*regions), out, argmax)
        roi_pool.backward(out, argmax, Pooling(*regions), features)
    candidates = min(2000, 3 * sides[3][0] * sides[3][1])
    boxes, valid = empty(images, candidates, 4), empty(images, candidates, dtype=torch.bool)
    nms.keep_mask(boxes, valid, 0.7, None)
    bits = empty(images, images + 3, height, width // 8, dtype=torch.uint8)
    masks.targets(bits, index, index, empty(rois, 4), index.bool(), index, 28, False, False)
    sides = height * 3 // 5, width * 3 // 5
    masks.paste(empty(100, 28, 28), empty(100, 4), *sides, "torchvision", 0.5)


def count(memory_format, shapes):
    """Return {kernel: variants} over batches of `shapes`, each images, height and width."""
    keys = defaultdict(set)

    def compile_nothing(*, key, fn, **_):
        keys[fn.name].add(key)
        return True

    knobs.runtime.jit_cache_hook = compile_nothing
    for shape in shapes:
        step(*shape, memory_format)
    return {name: len(found) for name, found in keys.items()}


def main(batches):
    """Print {memory format: {kernel: variants}} and the number of shapes of so many batches."""
    driver.set_active(Chip())
    generator = random.Random(0)
    shapes = {(n, *batch_shape(generator, n)) for n in (2, 16) for _ in range(batches // 2)}
    formats = ["channels_last", "contiguous_format"]
    variants = {name: count(getattr(torch, name), sorted(shapes)) for name in formats}
    print(json.dumps({"shapes": len(shapes), "variants": variants}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
