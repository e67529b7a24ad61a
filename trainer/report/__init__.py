"""The report of a trained model: one HTML page with tables, charts and pictures."""
