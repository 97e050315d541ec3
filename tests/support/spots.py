"""A stand-in for a model that finds what is bright, and videos of a bright spot that moves."""

from dataclasses import replace

import av
import numpy as np
import torch

from accelerated.structures import Crop, CroppedDetections, Detections
from support import small


class Spots:
    """Finds the bright pixels of each image: one object of class 2 at 0.9, in each image with any.

    passes  shapes of the images of each forward pass
    """

    weight = torch.zeros(())
    config = small.config()
    categories, class_names = None, ["class 1", "class 2"]

    def __init__(self):
        self.passes = []

    def batch_detections(self, batch):
        raise AssertionError("detect is all there is")

    def detect(self, images, run=None, crops=True):
        self.passes.append([image.shape[:2] for image in images])
        return [self._detect(image) for image in images]

    def _detect(self, image):
        mask = torch.from_numpy(image.min(axis=2) > 128)
        if not mask.any():
            none = torch.zeros(0)
            return CroppedDetections(none.view(0, 4), none, none.long(), None, [])
        y, x = np.nonzero(mask.numpy())
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        window = mask[box[1] : box[3], box[0] : box[2]]
        crop = Crop(window, int(box[1]), int(box[0]), tuple(mask.shape))
        boxes = torch.tensor([box], dtype=torch.float32)
        return CroppedDetections(boxes, torch.tensor([0.9]), torch.tensor([2]), None, [crop])


CATEGORIES = [{"id": 4, "name": "class 1"}, {"id": 8, "name": "class 2"}]


class Boxes(Spots):
    """The same without masks."""

    def _detect(self, image):
        found = super()._detect(image)
        return Detections(found.boxes, found.scores, found.labels, None)


def spot(left, top, size=(48, 64), side=16):
    """A black picture with a white square."""
    image = np.zeros((*size, 3), np.uint8)
    image[top : top + side, left : left + side] = 255
    return image


def write_video(path, images, rate=25, sound=False, **options):
    """Write a video, and 1 s of silence with it; without images only that."""
    with av.open(str(path), "w", options=options) as container:
        images = list(images)
        if images:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
            # Each frame for itself, so that damage stays where it is.
            stream.codec_context.gop_size = 1
        audio = container.add_stream("aac", rate=8000) if sound else None
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if images:
            container.mux(stream.encode(None))
        for index in range(8 if sound else 0):
            silence = np.zeros((1, 1000), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 1000 * index
            container.mux(audio.encode(frame))
        if sound:
            container.mux(audio.encode(None))
    return path


def without_masks():
    """A configuration whose model has no mask branch."""
    config = small.config()
    return replace(config, mask_head=replace(config.mask_head, kind="none"))
