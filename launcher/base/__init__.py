"""Used by all other packages: text of others, sizes and durations, YAML, .env, and every error with its exit code."""
