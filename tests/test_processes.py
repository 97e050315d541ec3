"""processes: without others, a process is the whole."""

import torch

from accelerated import processes


def test_alone_totals_and_counts_are_those_of_the_process():
    x = torch.rand(3, requires_grad=True)
    assert processes.number() == 1 and processes.total(x) is x
    for chosen, expected in (([True, False, True], 2), ([False], 1), ([], 1)):
        count = processes.count(torch.tensor(chosen, dtype=torch.bool), "rois")
        assert count.dtype == torch.int64 and count == expected
