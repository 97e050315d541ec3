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
]
