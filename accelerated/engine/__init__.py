"""Train, evaluate and apply the model; checkpoints and logs."""
