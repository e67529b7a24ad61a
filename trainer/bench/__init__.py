"""Measurements of loading and of training steps."""
