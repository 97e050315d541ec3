"""The feature pyramid [FPN, Lin et al. 2017], SPEC §13.

Legend: N images. Level l has stride 2^l; C2..C5 come from the backbone, P2..P6 go to the heads.
"""

from reference import backbone, norm, upsample
from reference.config import Config
from reference.max_pool import max_pool2d


def forward(parameters: dict, stages: dict, config: Config, statistics: dict | None = None) -> dict:
    """Compute {2: C2, ..., 5: C5} -> {2: P2, ..., 6: P6}, all with `config.fpn.channels` channels.

    From the top down, each map is resized and added to the next finer one. P6, for the RPN alone,
    is every second pixel of P5.
    """

    def layer(name, x, **keywords):
        kind, affine = config.fpn.norm, f"{name}_norm"
        return norm.conv_norm(parameters, name, affine, x, kind, config, statistics, **keywords)

    pyramid, above = {}, None
    for level in (5, 4, 3, 2):
        x = layer(f"fpn.lateral{level}", stages[level])
        above = x if above is None else x + upsample.nearest(above, *x.shape[2:])
        pyramid[level] = layer(f"fpn.output{level}", above, padding=1)
    pyramid[6] = max_pool2d(pyramid[5], kernel=1, stride=2)
    return {level: pyramid[level] for level in sorted(pyramid)}


def channels(config: Config) -> int:
    """Return the number of channels of every level."""
    return config.fpn.channels


def parameter_shapes(config: Config) -> dict:
    """Return {parameter: shape}."""
    width, shapes = config.fpn.channels, {}
    for level, before in backbone.of(config).channels(config).items():
        for part, shape in (("lateral", (width, before, 1, 1)), ("output", (width, width, 3, 3))):
            name = f"fpn.{part}{level}"
            shapes |= norm.parameter_shapes(name, f"{name}_norm", shape, config.fpn.norm)
    return shapes
