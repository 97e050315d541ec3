"""Models whose tensors all differ, made quickly; and the equality of two state dicts."""

from collections.abc import Mapping

import torch

from accelerated.mask_rcnn import MaskRCNN
from reference.config import Config


def filled(config: Config, dtype: torch.dtype = torch.float32) -> MaskRCNN:
    """Create a model in evaluation mode with random numbers in every tensor; variances positive."""
    with torch.device("meta"):
        model = MaskRCNN(config)
    model = model.to_empty(device="cpu").to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if name.endswith("running_var") else -0.1, 1.5, generator=generator)
        else:
            tensor.random_(1000, generator=generator)
    return model


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """Assert that two state dicts have the same names, dtypes and bits."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name
