"""Mask R-CNN in NumPy, forward and backward, written to be read. It needs NumPy and nothing else.

Every file has a twin of the same name in `accelerated/`, except the primitives that PyTorch already
has. `docs/SPEC.md` explains each choice that the configuration offers. A reading order:

 1. structures    what goes in, what comes out, and every intermediate result (Stages)
    config        every switch of the algorithm; presets: named sets of them
 2. boxes, box_coder, anchors    the geometry
 3. transform     from a photograph to the array that the network sees
 4. conv, norm, activations, max_pool, upsample, linear, average_pool    the layers
    backbone (resnet, vgg), neck (fpn, single_scale)    from an image to feature maps
 5. matcher, sampler, nms    which anchor belongs to which object; which boxes stay
    rpn           from feature maps to proposals, and what it learns from
 6. roi_align     a fixed grid of features for every proposal; start at `interpolation_matrix`
    rois, roi_pool, roi_warp    what preceded it; pooler: from which level a RoI is pooled
    shared_head   stage 5 of a C4 model, between pooler and heads
 7. labels, box_head    classes and refined boxes; postprocess: the detections
    masks, mask_head    masks, their targets, and pasting them into the image
 8. mask_rcnn     the wiring: detect() and losses(); parameters: their shapes and initial values
 9. losses, autodiff    the loss functions, and the tape that runs every backward; grad_check
10. optimizer, train, shapes    SGD and AdamW, the training loop, a synthetic data set
    checkpoint    a model from the files that training wrote
11. average_precision    how good the detections are, as COCO counts
12. windows, deepmask    what came before: DeepMask and SharpMask

    from reference import config, mask_rcnn, parameters, structures
    tiny, record = config.preset("tiny"), structures.Stages()
    weights = parameters.initial_parameters(tiny, numpy.random.default_rng(0))
    detections = mask_rcnn.MaskRCNN(tiny, weights).detect([image], record)
    print(record.P2.shape, record.proposals[0].shape)
"""
