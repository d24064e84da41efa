"""Training loop, one optimization step, optimizers, CUDA graphs and stopping."""
