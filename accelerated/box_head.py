"""Box head: pooled features -> class logits and class-specific box deltas; and the RoIs it is trained on.

Shapes: R rois, C channels, K classes, E entries (classes that have deltas: K, or K + 1 with the background first);
N images, P proposal slots (pooled size in the head), G ground-truth slots, B sampled RoIs of an image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from accelerated import box_coder, matcher, norm, sampler


class BoxHead(nn.Module):
    """pooled [R, C, P, P], valid [R] or None -> class_logits [R, K + 1], box_deltas [R, 4 E], class-major.

    "two_fc": fc6, fc7 [FPN §4.2]. "four_conv_fc": four 3x3 convolutions, then fc6 [Group Normalization §4.2].
    `valid` keeps padded RoIs out of batch statistics; it changes nothing else.
    """

    def __init__(self, config):
        super().__init__()
        head, channels = config.box_head, config.fpn.channels
        self.convs = 4 if head.kind == "four_conv_fc" else 0
        for i in range(1, self.convs + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, head.conv_channels, 3, padding=1, bias=head.norm == "none"))
            if head.norm != "none":
                self.add_module(f"conv{i}_norm", norm.make(head.norm, head.conv_channels, config))
            channels = head.conv_channels
        self.fc6 = nn.Linear(channels * head.pooler.output_size**2, head.channels)
        self.fc7 = nn.Linear(head.channels, head.channels) if head.kind == "two_fc" else None
        self.class_logits = nn.Linear(head.channels, config.num_classes + 1)
        self.box_deltas = nn.Linear(head.channels, 4 * entries(config))
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(self, pooled, valid=None):
        x = pooled
        for i in range(1, self.convs + 1):
            x = F.relu_(norm.conv_norm(getattr(self, f"conv{i}"), getattr(self, f"conv{i}_norm", None), x, valid))
        x = F.relu_(self.fc6(x.flatten(1)))  # in the order C, P, P
        if self.fc7 is not None:
            x = F.relu_(self.fc7(x))
        return self.class_logits(x), self.box_deltas(x)


def entries(config):
    """How many classes have deltas and mask channels of their own: K, or K + 1 where the (unused) background comes first."""
    return config.num_classes + (config.background == "first")


class Samples(NamedTuple):
    """The RoIs of each image that the heads train on, objects first, each kind by rising priority."""

    rois: torch.Tensor  # [N, B, 4]
    labels: torch.Tensor  # [N, B]: 1..K, 0 background, -1 empty slot
    matched: torch.Tensor  # [N, B], ground truth of each; of consequence for objects only
    deltas: torch.Tensor  # [N, B, 4], wanted; 0 unless an object


@torch.no_grad()
def targets(proposals, valid, gt_boxes, gt_labels, gt_valid, priorities, config):
    """Match proposals (and ground truths themselves) to ground truths, and draw a balanced sample [Fast R-CNN §2.3].

    proposals [N, P, 4], valid [N, P]; gt_boxes [N, G, 4], gt_labels [N, G], gt_valid [N, G]; priorities [N, P + G]:
    the smallest are taken; config: config.BoxHead. Returns Samples.
    """
    if config.append_ground_truth:
        proposals, valid = torch.cat([proposals, gt_boxes], 1), torch.cat([valid, gt_valid], 1)
    kind, matched = matcher.match_boxes(gt_boxes, gt_valid, proposals, config.foreground_iou, config.background_iou, low_quality=False)
    kind = kind.masked_fill(~valid, -1)
    index, positive, filled = sampler.sample(kind, priorities[:, : kind.shape[1]], config.batch_size, config.positive_fraction)
    matched = matched.gather(1, index)
    labels = torch.where(positive, gt_labels.gather(1, matched), 0).masked_fill(~filled, -1)
    rois = proposals.gather(1, index[..., None].expand(-1, -1, 4))
    wanted = gt_boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    deltas = box_coder.encode(wanted, rois, config.box_weights)  # meaningless, even NaN, but for objects
    return Samples(rois, labels, matched, torch.where(positive[..., None], deltas, 0))
