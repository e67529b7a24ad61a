"""What every other room uses: sizes and durations in words, and every error with its exit code."""
