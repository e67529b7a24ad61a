"""Runs as containers of a Docker or Podman engine."""
