"""Scores of predictions: validation metrics, confidence intervals, calibration, label errors."""
