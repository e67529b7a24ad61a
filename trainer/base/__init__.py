"""Shared by all packages: errors with exit codes, files, metrics, provenance, CPU cores and process limits."""
