"""Train, predict with, ensemble and analyse document-image classifiers: `python -m trainer --help`."""

__version__ = "0.1.0"
