"""What every other room uses: sizes and durations in words, errors with their exit codes, the checkout."""
