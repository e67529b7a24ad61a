"""Networks, weights, losses, optimizers, and their files. No training loop."""
