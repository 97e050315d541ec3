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
    """List the trained parameters: all but running statistics, frozen norms and frozen stages."""
    frozen = backbone.of(config).frozen(config)
    names = [n for n in parameter_shapes(config) if not (n.startswith(frozen) or ".running_" in n)]
    if config.backbone.norm != "frozen":
        return names
    return [n for n in names if not (n.startswith("backbone.") and optimizer.is_norm(n))]


def check_parameters(parameters: dict, config: Config) -> dict[str, Array]:
    """Return the parameters as arrays, without PyTorch's batch counters.

    Raises one ValueError for all parameters that are missing, unexpected or of the wrong shape.
    """
    counter = ".num_batches_tracked"
    arrays = {k: np.asarray(v) for k, v in parameters.items() if not k.endswith(counter)}
    shapes, given = parameter_shapes(config), {name: x.shape for name, x in arrays.items()}
    wrong = [n for n, shape in given.items() if shape != shapes.get(n, shape)]
    problems = [f"{n} is missing" for n in shapes if n not in given]
    problems += [f"{n} is unexpected" for n in given if n not in shapes]
    problems += [f"{n} has shape {list(given[n])}, expected {list(shapes[n])}" for n in wrong]
    if len(problems) > 8:
        problems[8:] = [f"and {len(problems) - 8} more"]
    if problems:
        raise ValueError(f"the parameters do not fit the configuration: {'; '.join(problems)}")
    return arrays


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
        he = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
        if len(shape) == 1:
            value = np.full(shape, float(name.endswith((".running_var", ".weight"))))
        elif name.startswith(("fpn.", "box_head.fc", "mask_head.fc")):
            value = generator.uniform(-1, 1, shape) * math.sqrt(3 / math.prod(shape[1:]))
        else:
            scale = next((std[prefix] for prefix in std if name.startswith(prefix)), he)
            value = generator.standard_normal(shape) * scale
        parameters[name] = value.astype(dtype)
    return parameters
