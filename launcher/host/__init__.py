"""This machine: cores, memory, GPUs and their locks, their use now, and what `doctor` checks. Nothing about runs."""
