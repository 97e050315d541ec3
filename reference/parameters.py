"""The parameters of the model: their names and shapes, which are trained, and how they start."""

import math

import numpy as np

from reference import backbone, box_head, mask_head, neck, optimizer, rpn
from reference.config import Config
from reference.structures import Array


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of every parameter of the model, running statistics included."""
    parts = (backbone.of(config), neck.of(config), rpn, box_head, mask_head)
    return {name: shape for part in parts for name, shape in part.parameter_shapes(config).items()}


def trained_parameters(config: Config) -> list[str]:
    """Return the names of the parameters that training changes.

    These are all but running statistics, frozen norms and the frozen stages of the backbone.
    """
    frozen = backbone.of(config).frozen(config)

    def is_trained(name):
        frozen_norm = config.backbone.norm == "frozen" and name.startswith("backbone.")
        if name.startswith(frozen) or ".running_" in name:
            return False
        return not (frozen_norm and optimizer.is_norm(name))

    return [name for name in parameter_shapes(config) if is_trained(name)]


def check_parameters(parameters: dict, config: Config) -> dict[str, Array]:
    """Return the parameters as arrays, without PyTorch's batch counters.

    Raises one ValueError for all parameters that are missing, unexpected or of the wrong shape.
    """
    counter = ".num_batches_tracked"
    parameters = {k: np.asarray(v) for k, v in parameters.items() if not k.endswith(counter)}
    shapes = parameter_shapes(config)
    problems = [f"{name} is missing" for name in shapes if name not in parameters]
    problems += [f"{name} is unexpected" for name in parameters if name not in shapes]
    problems += [
        f"{name} has shape {list(value.shape)}, expected {list(shapes[name])}"
        for name, value in parameters.items()
        if name in shapes and value.shape != shapes[name]
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        shown = "; ".join(problems[:8]) + more
        raise ValueError(f"the parameters do not fit the configuration: {shown}")
    return parameters


def initial_parameters(
    config: Config, generator: np.random.Generator, dtype: type = np.float64
) -> dict[str, Array]:
    """Draw random parameters to start training from (SPEC §17).

    Convolutions of the backbone and of the heads: He et al. 2015, by fan out. Pyramid and fully
    connected layers: uniform with variance 1 / fan in. RPN and class logits: N(0, 0.01²). Box
    deltas and mask logits: N(0, 0.001²). Biases are 0, normalisations the identity.
    """
    std = {"rpn.": 0.01, "box_head.class": 0.01, "box_head.box": 0.001, "mask_head.logits": 0.001}
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        prefix = next((prefix for prefix in std if name.startswith(prefix)), None)
        if len(shape) == 1:
            value = np.full(shape, float(name.endswith((".running_var", ".weight"))))
        elif name.startswith(("fpn.", "box_head.fc", "mask_head.fc")):
            value = generator.uniform(-1, 1, shape) * math.sqrt(3 / math.prod(shape[1:]))
        elif prefix:
            value = generator.standard_normal(shape) * std[prefix]
        else:
            fan_out = shape[0] * math.prod(shape[2:])
            value = generator.standard_normal(shape) * math.sqrt(2 / fan_out)
        parameters[name] = value.astype(dtype)
    return parameters
