"""Training loop, single training step, optimizers, CUDA graphs and stop requests."""
