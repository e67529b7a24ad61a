"""One training run: steps, epochs, validation in between, checkpoints to resume, progress, devices, memory."""
