"""From checkpoints and images to probabilities and a submission."""
