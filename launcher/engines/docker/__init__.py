"""Runs as containers of a Docker engine, the images and their builds."""
