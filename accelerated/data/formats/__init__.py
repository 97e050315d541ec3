"""Other formats of annotations: one file each, converted to COCO's dictionary and back."""
