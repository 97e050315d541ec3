"""The way of batches to the device: each is copied and finished while the step before it runs."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch

from accelerated import transform
from accelerated.structures import Batch, RawBatch
from reference.config import Transform

# Steps that may be queued on the device while the next batch is loaded. Unlimited, the batches of
# all queued steps would have to be kept.
AHEAD = 2


def prefetched(
    source: Iterable[RawBatch], settings: Transform, device: torch.device
) -> Iterator[Batch]:
    """Yield the batches of `source`, finished, on `device`; none of its copies blocks.

    On a GPU the batches, which the loader leaves in page-locked memory, travel on a stream of their
    own beside the step before. So ask for a batch only once that step is launched.
    """
    if device.type != "cuda":
        for batch in source:
            yield transform.finish(batch.to(device, non_blocking=True), settings)
        return
    side = torch.cuda.Stream(device)
    for raw in source:
        with torch.cuda.stream(side):
            batch = transform.finish(raw.to(device, non_blocking=True), settings)
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        # The allocator would give the memory to the next copy while the step still reads it.
        batch.record_stream(current)
        yield batch


class Pace:
    """Keeps the host at most `AHEAD` steps before a GPU."""

    def __init__(self, device: torch.device):
        self.device, self.steps = device, deque()

    def wait(self) -> None:
        """Wait, after each step is launched, for the step launched `AHEAD` before it."""
        if self.device.type != "cuda":
            return
        # Sleep instead of spinning: the loader's processes want the core.
        done = torch.cuda.Event(blocking=True)
        done.record(torch.cuda.current_stream(self.device))
        self.steps.append(done)
        if len(self.steps) > AHEAD:
            self.steps.popleft().synchronize()
