"""The feature pyramid [Feature Pyramid Networks, Lin et al.], SPEC §13.

Legend: N images. Level l has stride 2^l; C2..C5 come from the backbone, P2..P6 go to the heads.
"""

from reference import backbone, norm, upsample
from reference.max_pool import max_pool2d


def forward(parameters, stages, config, statistics=None):
    """{2: C2, ..., 5: C5} -> {2: P2, ..., 6: P6}, all of `config.fpn.channels` channels.

    Top down, each map is enlarged and added to the next finer one. P6 is every second pixel of P5, for the RPN alone.
    """
    pyramid, above = {}, None
    for level in (5, 4, 3, 2):
        x = conv_norm(parameters, f"fpn.lateral{level}", stages[level], config, statistics)
        above = x if above is None else x + upsample.nearest(above, *x.shape[2:])
        pyramid[level] = conv_norm(
            parameters, f"fpn.output{level}", above, config, statistics, padding=1
        )
    pyramid[6] = max_pool2d(pyramid[5], kernel=1, stride=2)
    return dict(sorted(pyramid.items()))


def conv_norm(parameters, name, x, config, statistics, **keywords):
    return norm.conv_norm(
        parameters, name, f"{name}_norm", x, config.fpn.norm, config, statistics, **keywords
    )


def channels(config):
    """Of every level."""
    return config.fpn.channels


def parameter_shapes(config):
    """{parameter: shape}."""
    width, kind = config.fpn.channels, config.fpn.norm
    shapes = {}
    for level, before in backbone.of(config).channels(config).items():
        for name, shape in (
            (f"fpn.lateral{level}", (width, before, 1, 1)),
            (f"fpn.output{level}", (width, width, 3, 3)),
        ):
            shapes |= norm.parameter_shapes(name, f"{name}_norm", shape, kind)
    return shapes
