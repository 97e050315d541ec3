"""Run a function in several processes that communicate (gloo, on the CPU)."""

import torch
from torch import distributed, multiprocessing

from accelerated.norm import SyncBatchNorm2d


def run(function, folder, *arguments, count=2):
    """Return what function(rank, *arguments) returns, tensors or containers, for every rank."""
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_process, (function, str(folder), arguments, count), nprocs=count)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(count)]


def _process(rank, function, folder, arguments, count):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def normalise(rank, cases):
    """Run a synchronised layer on each case, (x, valid or None, grad_out) per rank.

    Returns output, gradients and running statistics of each.
    """
    results = []
    for case in cases:
        x, valid, grad_out = case[rank]
        layer = SyncBatchNorm2d(x.shape[1]).double()
        with torch.no_grad():
            layer.weight.copy_(torch.arange(1.0, x.shape[1] + 1))
        x.requires_grad_()
        y = layer(x, valid)
        gradients = torch.autograd.grad((y * grad_out).sum(), [x, layer.weight, layer.bias])
        results.append((y.detach(), *gradients, layer.running_mean, layer.running_var))
    return results
