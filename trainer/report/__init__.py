"""The report of a model: tables, charts and pictures on one page."""
