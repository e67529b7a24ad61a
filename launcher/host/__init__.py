"""This machine: cores, memory, GPUs, their locks and current use, and the checks of `doctor`. Nothing about runs."""
