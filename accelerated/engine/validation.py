"""The losses of training on the validation data: without augmentation, gradients or updates."""

from collections import Counter

import numpy as np
import torch

from accelerated import processes, transform
from accelerated.data.dataset import Dataset
from accelerated.data.loader import loader
from accelerated.engine.capture import count_anchors
from accelerated.mask_rcnn import MaskRCNN
from accelerated.structures import Batch

# What each loss is a mean over, see `processes.count`.
OVER = {"rpn_objectness": "anchors", "rpn_box": "anchors", "class": "rois", "box": "rois"}
OVER |= {"mask": "objects"}


@torch.no_grad()
def losses(
    model: MaskRCNN, dataset: Dataset, *, seed: int, workers: int = 0, amp: bool = False
) -> dict[str, float | None]:
    """Return the five losses of a data set, as if all its images were one batch.

    So an image weighs as much as it has sampled anchors and RoIs, for masks objects. The draws of
    the sampling depend on the seed and the image alone. Normalisation is that of detection, and
    running statistics stay. None stands for a loss that is not finite.
    Several processes share the images; each returns the losses of all.
    """
    part, training = (processes.rank(), processes.number()), model.training
    how = {"workers": workers, "training": False, "part": part}
    batches = loader(dataset, model.config, batch_size=1, **how)
    device, sums, counts = model.weight.device, Counter(), Counter()
    model.eval()
    for position, raw in enumerate(batches):
        batch = transform.finish(raw.to(device, non_blocking=True), model.config.transform)
        index, own = part[0] + position * part[1], {}

        def note(what, number, own=own):
            own[what] = torch.as_tensor(number, device=device)
            return number

        autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)
        with processes.apart(), processes.counting(note), autocast:
            found = model.batch_losses(batch, _priorities(model, batch, seed, index))
        for name, loss in found.items():
            over = own.get(OVER[name], own["images"])
            # Undoes the division, of which the divisor was at least 1.
            sums[name] += (loss * over).double()
            counts[name] += over.double()
    model.train(training)
    names = [name for name in OVER if name != "mask" or model.mask_head is not None]
    zero = torch.zeros((), dtype=torch.float64, device=device)
    both = [torch.stack([zero + values[name] for name in names]) for values in (sums, counts)]
    loss, number = processes.total(torch.stack(both))
    means = (loss / number.clamp(min=1)).tolist()
    return {n: x if np.isfinite(x) else None for n, x in zip(names, means, strict=True)}


def _priorities(model: MaskRCNN, batch: Batch, seed: int, index: int) -> dict[str, torch.Tensor]:
    """Draw the priorities of image `index`, alike in one and in several processes."""
    state = np.random.SeedSequence([seed, 3, index]).generate_state(1)
    generator = torch.Generator(batch.images.device).manual_seed(int(state[0]))
    slots = model.config.rpn.post_nms_top_n_train + batch.boxes.shape[1]
    widths = {"rpn": count_anchors(model.config, *batch.images.shape[2:]), "roi": slots}
    return {
        name: torch.rand(1, width, device=batch.images.device, generator=generator)
        for name, width in widths.items()
    }
