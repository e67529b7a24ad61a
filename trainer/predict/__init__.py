"""From a checkpoint and images to probabilities: inference, the submission, predictions kept for reuse."""
