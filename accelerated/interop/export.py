"""Programs that detect without this package: torch.export (.pt2) and ONNX (.onnx).

A program is the model in evaluation mode, with its weights, at one shape of its inputs:

    images              [N, 3, H, W]  float, RGB in 0..255, resized; anything right of and below it
    sizes               [N, 2] int64  (h, w) of each image in it
    boxes               [N, D, 4]     xyxy, pixels of `images`; ordered by falling score
    scores              [N, D]
    labels              [N, D] int64  1..K
    valid               [N, D] bool   whether a slot is filled; empty slots stand last, hold zeros
    mask_probabilities  [N, D, S, S]  inside of each box, meaningless in empty slots; absent without
                                      a mask branch

Normalising is part of the program. Before it stands `program_inputs`, which resizes; after it
postprocess.rescale and masks.paste. Each file carries the configuration and the categories.

Legend: N images, H x W pixels of the program, D detection slots, S side of a mask.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accelerated import transform
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch
from reference.config import Config, to_dict

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "valid", "mask_probabilities")


class Program(nn.Module):
    """The model from pixels to padded detections, as a function of tensors alone."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.dtype = torch.promote_types(model.weight.dtype, torch.float32)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.config.transform, name), dtype=self.dtype)
            self.register_buffer(name, values[:, None, None].to(model.weight.device))

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        config = self.model.config.transform
        height, width = (
            torch.arange(side, device=images.device) < sizes[:, i, None]
            for i, side in enumerate(images.shape[2:])
        )
        inside = (height[:, :, None] & width[:, None, :])[:, None]
        images = images if config.channel_order == "rgb" else images.flip(1)
        images = (images * config.pixel_scale - self.mean) / self.std
        images, none = torch.where(inside, images, 0), images.new_zeros(len(images), 0)
        batch = Batch(sizes, none, none, none, none, [], [], images=images)
        found = self.model.batch_detections(batch)
        return tuple(output for output in found if output is not None)


def export(
    model: MaskRCNN,
    *paths: str | Path,
    height: int,
    width: int,
    batch: int = 1,
    categories: Sequence[dict] | None = None,
) -> dict[str, str]:
    """Write the model as a program to each of `paths`, NAME.pt2 or NAME.onnx.

    height, width  of `images`: multiples of transform.size_divisor; see `program_shape`
    batch          images at a time
    categories     the names of the labels, {"id", "name"}, stored with the program

    The program runs on the model's device, in the model's precision; ONNX is written in float32.
    Returns {input or output: its dtype and shape}.
    Raises ValueError for an unknown suffix, an existing file, a shape that the model would pad, or
    an operator without a translation; RuntimeError if a package for ONNX is missing.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        if target.suffix not in WRITERS:
            raise ValueError(f"{target}: expected a name that ends in {' or '.join(WRITERS)}")
        if target.exists():
            raise ValueError(f"{target} already exists")
    _check_exportable(model.config, height, width)
    if any(target.suffix == ".onnx" for target in targets):
        _check_onnx(model.weight.dtype)
    program = Program(model)
    device = model.weight.device
    images = torch.zeros(batch, 3, height, width, dtype=program.dtype, device=device)
    sizes = torch.tensor([[height, width]] * batch, device=device)
    metadata = {"config": to_dict(model.config), "categories": categories}
    metadata = {name: json.dumps(value) for name, value in metadata.items()}
    with torch.no_grad(), quiet():
        exported = torch.export.export(program, (images, sizes))
        outputs = exported.graph_signature.user_outputs
        names = [*INPUTS, *OUTPUTS[: len(outputs)]]
        for target in targets:
            # A killed process leaves no file of the wanted name.
            partial = target.with_name(f".partial-{target.name}")
            try:
                WRITERS[target.suffix](exported, partial, names, metadata)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if "val" in node.meta}
    tensors = [images, sizes, *(values[name] for name in outputs)]
    return {name: _describe(tensor) for name, tensor in zip(names, tensors, strict=True)}


def program_shape(config: Config) -> tuple[int, int]:
    """Return (H, W) that holds every landscape photograph at the model's scale.

    ValueError if the model resizes nothing, so that no scale is given.
    """
    transform_config = config.transform
    if not transform_config.min_size:
        raise ValueError("this model does not resize its images: give height and width")
    divisor = max(transform_config.size_divisor, 1)
    short, long = transform_config.min_size[-1], transform_config.max_size
    return -(-short // divisor) * divisor, -(-long // divisor) * divisor


def program_inputs(
    photos: Sequence[np.ndarray | torch.Tensor], config: Config, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resize photographs as the model does and return the program's inputs, `images` and `sizes`.

    photos  list of [H, W, 3] RGB, uint8 or floats in 0..255
    Raises ValueError if one does not fit into height x width at the model's scale.
    """
    images = np.zeros((len(photos), 3, height, width), np.float32)
    sizes = np.zeros((len(photos), 2), np.int64)
    for i, photo in enumerate(photos):
        image = transform.check_image(photo)
        size = rows, columns = tuple(image.shape[1:])
        if config.transform.min_size:
            short = config.transform.min_size[-1]
            size = transform.resized_shape(rows, columns, short, config.transform)
        if size[0] > height or size[1] > width:
            raise ValueError(
                f"photograph {i} has {size[0]} x {size[1]} pixels at the model's scale, the program"
                f" {height} x {width}; export another one with larger height and width"
            )
        if config.transform.interpolation == "bilinear":
            image = image.float()
        if size != (rows, columns):
            image = transform.resize(image, size, config.transform)
        images[i, :, : size[0], : size[1]], sizes[i] = image.numpy(), size
    return images, sizes


def _check_exportable(config, height, width):
    divisor = max(config.transform.size_divisor, 1)
    for name, side in (("height", height), ("width", width)):
        if side < 1 or side % divisor:
            wanted = max(-(-side // divisor), 1) * divisor
            raise ValueError(f"{name} {side}: expected a multiple of {divisor}, like {wanted}")
    heads = [config.box_head, config.mask_head][: 1 if config.mask_head.kind == "none" else 2]
    for head in heads:
        if head.pooler.operator == "roi_pool" or head.pooler.aggregate != "mean":
            raise ValueError(
                f"pooler: {head.pooler.operator} by {head.pooler.aggregate} cannot be exported;"
                " roi_align and roi_warp by mean can"
            )


def _check_onnx(dtype):
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"ONNX needs the package {' and '.join(missing)}: pip install 'maskrcnn-triton[onnx]'"
        )
    if dtype != torch.float32:
        raise ValueError(f"ONNX is written in float32, this model is {dtype}: use model.float()")


def _write_pt2(exported, path, names, metadata):
    from accelerated.interop.aten_operators import DECOMPOSITIONS

    program = exported.run_decompositions(DECOMPOSITIONS)
    torch.export.save(program, path, extra_files=metadata)


def _write_onnx(exported, path, names, metadata):
    from accelerated.interop.onnx_operators import OPSET, TRANSLATIONS

    program = torch.onnx.export(
        exported,
        input_names=names[: len(INPUTS)],
        output_names=names[len(INPUTS) :],
        opset_version=OPSET,
        dynamo=True,
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path)


WRITERS = {".pt2": _write_pt2, ".onnx": _write_onnx}


def _describe(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what PyTorch says about itself: its deprecations, and torchvision's absence."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
