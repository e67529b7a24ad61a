"""What this machine has: processors, memory, GPUs and their locks, and what is wrong with it."""
