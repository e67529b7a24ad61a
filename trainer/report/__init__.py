"""The report on a trained model: one HTML page with tables, charts and pictures."""
