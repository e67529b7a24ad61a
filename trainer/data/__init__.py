"""Data sets: tables, splits and folds, sampling, checks for leaks and duplicates, and drawn sample data."""
