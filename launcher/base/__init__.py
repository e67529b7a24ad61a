"""What every other room stands on: sizes, errors with their exit codes, the checkout."""
