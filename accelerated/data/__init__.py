"""Data sets: read COCO files strictly, check them, and make batches."""
