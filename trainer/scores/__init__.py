"""Figures: how good predictions are, and how sure that is."""
