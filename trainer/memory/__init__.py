"""Predict the device memory of training, and write the table that the launcher plans with."""
