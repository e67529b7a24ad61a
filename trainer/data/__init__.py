"""A data set: its table, its splits, its checks, and one that is drawn."""
