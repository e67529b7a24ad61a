"""Measurements of this machine: loading and training steps, against plain pieces and timm."""
