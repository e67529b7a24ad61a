"""Used by all other packages: sizes and durations as text, and every error with its exit code."""
