"""Measure the speed of loading and training on this machine, compared with plain code and timm."""
