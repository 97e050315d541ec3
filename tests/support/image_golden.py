"""Golden cases of transform, masks, losses and postprocess.

A subset is in the repository; the complete files are read if present.
"""

import numpy as np
import pytest

either = pytest.mark.parametrize("which", ["subset", "complete"])


def read(which, golden, shared_golden, operator):
    """Read a case, such as "tv/paste", as {"in.boxes": ..., "out.soft": ...}.

    Floats are float64; bits are unpacked.
    """
    source, name = operator.split("/", 1)
    if which == "subset":
        archive, prefix = golden("image_operators"), f"{operator}/"
    else:
        archive, prefix = (
            (shared_golden("tv_ops"), _float64(name))
            if source == "tv"
            else (shared_golden("d2_ops_f64"), f"{name}/")
        )
    case = {key[len(prefix) :]: archive[key] for key in archive.files if key.startswith(prefix)}
    assert case, f"no case {operator}"
    for key in [key for key in case if key.endswith("#shape")]:
        shape = case.pop(key)
        name = key.removesuffix("#shape")
        case[name] = np.unpackbits(case[name])[: shape.prod()].reshape(shape).astype(bool)
    return case


def _float64(name):
    operator, _, case = name.partition("/")
    return "/".join(part for part in (operator, "float64", case) if part) + "/"
