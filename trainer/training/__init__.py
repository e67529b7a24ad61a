"""One training run: its steps, its epochs, what it keeps and what it says."""
