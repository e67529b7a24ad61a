"""Predicted device memory of a run, the micro-batch that fits, and the manual's table of combinations."""
