"""Ways to break the oracle that a notebook's checks must notice: (notebook, code that breaks it).

The code runs in the notebook's kernel before its first cell.
"""

MUTATIONS = [
    # A duplicate is right.
    (
        "10_average_precision",
        "import reference.average_precision as m; f = m.match\n"
        "m.match = lambda iou, crowd, *rest: f(iou, crowd | True, *rest)",
    ),
    # The weights of the two neighbours are swapped.
    (
        "11_triton_kernel",
        "import reference.roi_align as m; f = m.neighbours\n"
        "m.neighbours = lambda *a: tuple(f(*a)[i] for i in (0, 1, 3, 2))",
    ),
]
