"""Networks, their weights, losses and optimizers, and the files that keep them. No training loop."""
