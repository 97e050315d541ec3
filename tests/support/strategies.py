"""Hypothesis strategies: boxes and features that exercise borders, emptiness and degeneracy."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def boxes(draw, height, width, min_count=0, max_count=8, step=1 / 8):
    """Draw boxes [R, 4] float64 xyxy on a dyadic grid of `step` pixels.

    They lie inside, across every border or outside; some are a pixel wide or empty.
    """
    count = draw(st.integers(min_count, max_count))
    out = np.zeros((count, 4))
    for row in out:
        for axis, side in ((0, width), (1, height)):
            low = draw(st.integers(int(-0.5 * side / step), int(1.25 * side / step))) * step
            extent = draw(
                st.one_of(
                    st.just(0.0),
                    st.just(1.0),
                    st.integers(0, int(1.5 * side / step)).map(lambda n: n * step),
                )
            )
            row[axis], row[axis + 2] = low, low + extent
    return out


@st.composite
def arrays(draw, *shape):
    """Normal float64 array, by seed: hypothesis shrinks the shape, not the numbers."""
    seed = draw(st.integers(0, 2**31 - 1))
    return np.random.default_rng(seed).standard_normal(shape)
