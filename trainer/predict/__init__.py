"""From a checkpoint and images to probabilities: inference, the submission, stored predictions."""
