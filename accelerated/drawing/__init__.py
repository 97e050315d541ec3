"""Pictures of detections, data sets and loss curves. Nothing is computed here."""
