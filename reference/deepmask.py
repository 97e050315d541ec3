"""DeepMask [Pinheiro et al. 2015 §3] and SharpMask [Pinheiro et al. 2016 §3], small models.

They came before Mask R-CNN, see one window of the image at a time, and answer two questions: which
pixels are the object in the middle, and is there one, whole and of the right size? They know no
classes. DeepMask computes its mask from a code of the whole window, so that it is coarse. SharpMask
goes back from the code to the pixels, past the maps of the trunk, and finds the edges.

Legend: N windows, S side of a window, M side of a mask (S / 4, SharpMask: S), C channels,
G ground truths.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from reference import optimizer, shapes, transform
from reference.activations import relu, sigmoid
from reference.autodiff import Array, Tape, detached
from reference.config import DeepMask, Optimizer
from reference.conv import conv2d
from reference.linear import flatten, fully_connected, linear
from reference.linear import parameter_shapes as linear_shapes
from reference.losses import binary_cross_entropy
from reference.roi_align import roi_align
from reference.upsample import nearest
from reference.windows import draw


class Windows(NamedTuple):
    """Windows and their answers.

    pixels  [N, 3, S, S]  in [-0.5, 0.5], 0 outside of the image
    labels  [N]           1: an object fits, 0: all objects are far
    masks   [N, S, S]     1 on the object that fits, else 0; of no meaning where the label is 0
    """

    pixels: Array
    labels: Array
    masks: Array


def normalized(image: Array) -> Array:
    """Scale an image [H, W, 3] of 0..255 to [3, H, W] in [-0.5, 0.5]."""
    return image.transpose(2, 0, 1) / 255 - 0.5


def cut(maps: Array, windows: Array, side: int) -> Array:
    """Resample windows [N, 4] of maps [C, H, W] by RoIAlign: [N, C, side, side], 0 outside."""
    only, options = np.zeros(len(windows), dtype=np.int64), {"sampling_ratio": 0, "aligned": True}
    return roi_align(maps[None], windows, only, output_size=side, spatial_scale=1.0, **options)


def sample(seed: int, count: int, config: DeepMask, **keywords) -> Windows:
    """Cut `count` windows, drawn by `windows.draw`, out of images of shapes, in random order.

    keywords  of `shapes.sample`
    """
    generator, parts, found, index = np.random.default_rng(seed), [], 0, 0
    while found < count:
        image, boxes, _, masks = shapes.sample(seed, index, **keywords)
        windows, labels, objects = draw(boxes, generator)
        cuts = cut(np.concatenate([normalized(image), masks]), windows, config.window)
        own = cuts[np.arange(len(windows)), 3 + objects] >= 0.5
        parts.append(Windows(cuts[:, :3], labels, own.astype(np.float64)))
        found, index = found + len(windows), index + 1
    order = generator.permutation(count)
    return Windows(*(np.concatenate(part)[order] for part in zip(*parts)))


def forward(parameters: dict, pixels: Array, config: DeepMask) -> tuple[Array, Array]:
    """Predict a score and a mask of each window [N, 3, S, S], as logits: [N], [N, M, M]."""
    stages, x = [], pixels
    for i, padding in enumerate((2, 1, 1), 1):
        x = relu(_conv(parameters, f"conv{i}", x, stride=2, padding=padding))
        stages.append(x)
    # No ReLU: every pixel of the mask is a linear function of all features, of low rank.
    code = _linear(parameters, "code", flatten(x))
    scores = _linear(parameters, "score", fully_connected(parameters, "score_hidden", code))
    if config.refinement:
        masks, side = refine(parameters, code, stages[1::-1], config), config.window
    else:
        masks, side = _linear(parameters, "mask", code), config.window // 4
    return scores.reshape(len(pixels)), masks.reshape(len(pixels), side, side)


def refine(parameters: dict, code: Array, stages: list[Array], config: DeepMask) -> Array:
    """Turn codes [N, hidden] into mask logits [N, 1, S, S] [Pinheiro et al. 2016 §3].

    stages  maps of the trunk [N, C, S/4, S/4] and [N, C, S/2, S/2]. Each step adds one, reduced to
            few channels, to what comes from above, and doubles the side.
    """
    name, side = "refinement", config.window // 4
    x = _linear(parameters, f"{name}.code", code).reshape(len(code), -1, side, side)
    for i, stage in enumerate(stages, 1):
        lateral = relu(_conv(parameters, f"{name}.reduce{i}", stage, padding=1))
        lateral = _conv(parameters, f"{name}.lateral{i}", lateral, padding=1)
        x = relu(_conv(parameters, f"{name}.top_down{i}", x, padding=1) + lateral)
        x = nearest(x, 2 * x.shape[2], 2 * x.shape[3])
    return _conv(parameters, f"{name}.logits", x, padding=1)


def losses(
    score_logits: Array, mask_logits: Array, labels: Array, masks: Array, config: DeepMask
) -> dict[str, Array]:
    """Return {"score", "mask"}, the losses of what `forward` returns, summing to SPEC §18's L.

    labels  [N]        1 or 0
    masks   [N, S, S]  averaged over the cells of a coarse mask. Only those of label 1 are used.
    """
    count, side = mask_logits.shape[:2]
    cell = config.window // side
    targets = masks.reshape(count, side, cell, side, cell).mean(axis=(2, 4))
    objects = np.flatnonzero(labels == 1)
    score = binary_cross_entropy(score_logits, labels).sum() * (config.score_weight / count)
    pixels = binary_cross_entropy(mask_logits[objects], targets[objects])
    return {"score": score, "mask": pixels.sum() / (count * side**2)}


def probabilities(mask_logits: Array, config: DeepMask) -> Array:
    """Return the probability of each pixel of the windows, coarse masks bilinear: [N, S, S]."""
    columns = transform.bilinear(sigmoid(mask_logits), config.window, 2)
    return transform.bilinear(columns, config.window, 1)


def sweep(parameters: dict, image: Array, windows: Array, config: DeepMask) -> tuple[Array, Array]:
    """Run the model on windows [N, 4] of an image [H, W, 3] of 0..255.

    Returns the probability that an object fits [N], and those of the pixels [N, S, S].
    """
    pixels = cut(normalized(image), windows, config.window)
    score_logits, mask_logits = forward(parameters, pixels, config)
    return sigmoid(score_logits), probabilities(mask_logits, config)


def gradients(parameters: dict, windows: Windows, config: DeepMask) -> tuple[dict, dict]:
    """Return the losses and the gradients of all parameters that are trained, by name."""
    tape = Tape()
    variables = {name: tape.variable(parameters[name]) for name in trained_parameters(config)}
    outputs = forward(parameters | variables, windows.pixels, config)
    values = losses(*outputs, windows.labels, windows.masks, config)
    total: Any = values["score"] + values["mask"]
    tape.backward(total)
    return detached(values), {name: variable.grad for name, variable in variables.items()}


def train(
    parameters: dict, windows: Windows, config: DeepMask, settings: Optimizer, iterations: int
) -> Iterator[tuple[dict, dict]]:
    """Train for `iterations` steps, and yield (new parameters, losses before the step) of each.

    Batches of `settings.batch_size` follow each other in the order of the windows, which are
    mirrored left to right in every second pass. Raises ValueError for fewer windows than a batch.
    """
    state, size = optimizer.State(), settings.batch_size
    if len(windows.labels) < size:
        raise ValueError(f"{len(windows.labels)} windows are fewer than a batch of {size}")
    for iteration in range(iterations):
        rounds, i = divmod(iteration, len(windows.labels) // size)
        pixels, labels, masks = (part[i * size : (i + 1) * size] for part in windows)
        x = slice(None, None, -1 if rounds % 2 else 1)
        batch = Windows(pixels[..., x], labels, masks[..., x])
        values, grads = gradients(parameters, batch, config)
        rate = optimizer.learning_rate(settings, iteration, iterations, size)
        parameters, state = optimizer.step(parameters, grads, state, rate, settings)
        yield parameters, values


def parameter_shapes(config: DeepMask) -> dict[str, tuple[int, ...]]:
    """Return {parameter: shape}; SharpMask has those of DeepMask too."""
    (one, two, three), hidden, side = config.channels, config.hidden, config.window // 4
    convs = {"conv1": (one, 3, 5, 5), "conv2": (two, one, 3, 3), "conv3": (three, two, 3, 3)}
    linears = {"code": (hidden, three * (side // 2) ** 2), "score_hidden": (hidden, hidden)}
    linears |= {"score": (1, hidden), "mask": (side**2, hidden)}
    if config.refinement:
        width, *widths = config.refinement
        linears["refinement.code"] = (width * side**2, hidden)
        for i, (below, channels) in enumerate(zip((two, one), widths), 1):
            convs[f"refinement.reduce{i}"] = (channels, below, 3, 3)
            convs[f"refinement.lateral{i}"] = (channels, channels, 3, 3)
            convs[f"refinement.top_down{i}"] = (channels, width, 3, 3)
            width = channels
        convs["refinement.logits"] = (1, width, 3, 3)
    layers = convs | linears
    return {k: v for name, shape in layers.items() for k, v in linear_shapes(name, shape).items()}


def trained_parameters(config: DeepMask) -> list[str]:
    """List what is trained: SharpMask's refinement alone, on a DeepMask that stays as it is."""
    names = parameter_shapes(config)
    return [name for name in names if name.startswith("refinement.") or not config.refinement]


def initial_parameters(
    config: DeepMask, generator: np.random.Generator, dtype: type = np.float64
) -> dict[str, Array]:
    """Draw weights from N(0, 2 / fan in) [He et al. 2015]; biases are 0."""
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        scale = math.sqrt(2 / math.prod(shape[1:])) if name.endswith(".weight") else 0
        parameters[name] = (generator.standard_normal(shape) * scale).astype(dtype)
    return parameters


def _conv(parameters, name, x, **geometry):
    return conv2d(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], **geometry)


def _linear(parameters, name, x):
    return linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
