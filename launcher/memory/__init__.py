"""How much device memory a run needs, and what fits where."""
