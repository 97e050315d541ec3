"""Mask R-CNN in PyTorch and Triton; every step has a readable twin of the same name in `reference`.

    import accelerated
    model = accelerated.load("maskrcnn_resnet50_fpn_coco.pth")     # torchvision, detectron2 or ours
    [detections] = model.detect(["photo.jpg"])                     # paths, arrays [H, W, 3] RGB of
                                                                   # 0..255, or Pillow's images
    print(detections.labels, detections.scores, detections.boxes)  # classes 1..K; xyxy in pixels
    print([model.class_names[label - 1] for label in detections.labels])

    from accelerated.engine.train import train                     # own pictures, labelled
    from accelerated.data.coco import CocoDataset
    from reference.config import override, preset
    dataset = CocoDataset("labels.json", "pictures")               # checked before it is used
    config = override(preset("small"), f"num_classes={len(dataset.class_names)}")
    model = train(config, dataset, "run", iterations=1000).model

    from accelerated.engine.predict import predict                 # drawings, and a list of objects
    predict(model, ["new pictures"], "predictions")
    for found in accelerated.detections(model, ["new pictures"]):  # or one picture after the other
        print(found.path, found.class_names, found.detections.boxes)

`help("accelerated.data.dataset")` shows a data set of your own, in 20 lines and without a file. The
command `maskrcnn` does all this in a terminal.

    pooled = accelerated.roi_align.roi_align(features, rois, image_index, **options)

`MaskRCNN(config)` builds an untrained model, `Target` is what it learns from, and `Detections` is
what it returns. `roi_align` is the module; its function has the same name. Nothing is imported
before it is used: `import accelerated` needs neither PyTorch nor Triton.

Which file holds what, in reading order:

    structures      Target, Batch, Detections, Stages: inputs, outputs, intermediate results
    labels          which output columns and mask channels belong to which class
    transform       images and targets as the network sees them
    backend         the choice between Triton and plain PyTorch
    boxes, box_coder, anchors, matcher, sampler, nms, masks, conv, norm, losses, parameters
                    the parts that the stages share
    processes       sums over the processes that train one model
    rois, roi_pool, roi_warp, roi_align, pooler
                    features of a region of interest
    resnet, vgg, backbone, fpn, single_scale, neck, shared_head
                    from an image to feature maps
    rpn, box_head, mask_head
                    the stages, each with its targets, sampling and losses
    postprocess     final detections
    mask_rcnn       the whole model: `detect` and `losses`
    deepmask        what came before: DeepMask and SharpMask
    optimizer       parameter groups, learning rates and gradient clipping
    kernels         one file per operator and backend: Triton, plain PyTorch
    data            data sets in COCO's and other formats, their checks and repair, batches
    engine          training, evaluation, prediction, checkpoints
    interop         checkpoints of torchvision, detectron2, maskrcnn-benchmark and Caffe2, some
                    downloaded by name; our operators under torchvision's models; export to ONNX
                    and torch.export
    verify          comparison with the NumPy reference, stage by stage
    analysis        kinds of errors, curves, confusion and calibration, and the page that shows them
    drawing         pictures of detections and losses
    experiments     the ablation and the benchmark
    command_line    the `maskrcnn` command
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerated import roi_align
    from accelerated.engine.finding import detections
    from accelerated.interop import load
    from accelerated.mask_rcnn import MaskRCNN
    from accelerated.structures import Detections, Target

    __version__: str

__all__ = ["Detections", "MaskRCNN", "Target", "__version__", "detections", "load", "roi_align"]

MODULES = {
    "Detections": "structures",
    "MaskRCNN": "mask_rcnn",
    "Target": "structures",
    "detections": "engine.finding",
    "load": "interop",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name in MODULES:
        return getattr(import_module(f"accelerated.{MODULES[name]}"), name)
    # Importing a submodule sets an attribute of the package, so a function of this name would be
    # replaced by the module as soon as anybody imports it.
    if name == "roi_align":
        return import_module("accelerated.roi_align")
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("maskrcnn-triton")
        except metadata.PackageNotFoundError:
            return "unknown (not installed)"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the exported names besides those already imported."""
    return sorted({*globals(), *__all__})
