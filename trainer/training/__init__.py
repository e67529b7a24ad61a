"""One training run: steps, epochs, validation, checkpoints to resume from, progress, devices."""
