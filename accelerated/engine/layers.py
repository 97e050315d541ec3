"""Which parameters are trained, and how fast, by patterns of their names.

In a pattern, * stands for any characters, dots too, and ? for one: backbone.* are all parameters of
the backbone.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from accelerated.mask_rcnn import MaskRCNN
from accelerated.norm import BatchNorm2d
from reference.config import Config


def check(config: Config, freeze: Sequence[str], rates: Sequence[str]) -> nn.Module:
    """Return a model of `config` without values, frozen by `freeze`.

    Raises ValueError for a pattern that no parameter has, for a bad factor, or if nothing is left
    to train.
    """
    with torch.device("meta"):
        model = MaskRCNN(config)
    freeze_parameters(model, freeze)
    factors(model, rates)
    return model


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of training; a batch norm without trained ones keeps its statistics."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        for name in _matching("--freeze", pattern, parameters):
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"--freeze {' '.join(patterns)}: nothing is left to train")
    for module in model.modules() if patterns else ():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_with_gradient)
        elif isinstance(module, BatchNorm2d):
            module.keeps_statistics = not any(p.requires_grad for p in module.parameters())
            module.train(module.training)


def _with_gradient(module, inputs):
    """Let the input of a trained group norm have a gradient, which is dropped.

    On a CPU, PyTorch 2.13 crashes in the backward of a channels-last map without one.
    """
    [x] = inputs
    trained = torch.is_grad_enabled() and module.weight.requires_grad
    return x.detach().requires_grad_() if trained and x.is_cpu and not x.requires_grad else x


def factors(model: nn.Module, rates: Sequence[str]) -> dict[str, float]:
    """Return {parameter: factor of its learning rate} by texts such as "backbone.*=0.1".

    The last pattern that a name has counts; parameters without one are not listed.
    """
    found, names = {}, [name for name, _ in model.named_parameters()]
    for text in rates:
        pattern, _, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if not pattern or not 0 < factor < float("inf"):
            raise ValueError(
                f"--rate {text}: expected PATTERN=FACTOR with a factor above 0, such as"
                " backbone.*=0.1 (--freeze takes parameters out of training)"
            )
        found |= dict.fromkeys(_matching("--rate", pattern, names), factor)
    return found


def _matching(option, pattern, names):
    """List the names that have the pattern; raise ValueError, with similar names, if none has."""
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if matching:
        return matching
    # All parameters, and everything that holds some.
    known = dict.fromkeys(names)
    for name in names:
        parts = name.split(".")
        known |= dict.fromkeys(f"{'.'.join(parts[:i])}.*" for i in range(1, len(parts)))
    similar = get_close_matches(pattern, known, n=3, cutoff=0.5)
    similar = similar or [name for name in known if name.count(".") == 1 and name.endswith(".*")]
    raise ValueError(f"{option} {pattern}: no parameter has this name; there are {_some(similar)}")


def _some(words):
    return ", ".join(words[:8])


def frozen_summary(model: nn.Module, patterns: Sequence[str]) -> str:
    """Tell how many numbers are not trained because of `patterns`."""
    named = model.named_parameters()
    frozen = [p for name, p in named if any(fnmatchcase(name, pattern) for pattern in patterns)]
    count, total = (sum(p.numel() for p in ps) for ps in (frozen, model.parameters()))
    return f"{', '.join(patterns)}: {count:,} of {total:,} parameters"


def rates_summary(model: nn.Module, rates: Sequence[str]) -> str:
    """Tell how many trained numbers have which factor on their learning rate."""
    found, counts = factors(model, rates), Counter()
    for name, p in model.named_parameters():
        if p.requires_grad:
            counts[found.get(name, 1.0)] += p.numel()
    texts = [f"times {factor:g} for {counts[factor]:,} parameters" for factor in sorted(counts)]
    return f"{', '.join(rates)}: {', '.join(texts)}"
