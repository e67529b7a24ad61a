"""Commands that look back at what is in a runs folder: list, why, diff."""
