"""The parameters of the model: their names and shapes, which are trained, and how they start.

PyTorch's modules define the names and shapes, and `requires_grad` what is trained; how the layers
start stands here.
"""

import torch
from torch import nn


def initialise(module: nn.Module) -> None:
    """Initialise a convolution or a fully connected layer; leave other modules alone.

    Convolutions: normal, by fan out [Rectifiers, He et al. 2015]. Fully connected layers: uniform,
    with variance 1 / fan in. Biases: 0.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=1)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of convolutions out in `memory_format`; their values stay."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
