"""The configuration: its keys, how it is composed and how it is checked. No torch here."""
