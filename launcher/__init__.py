"""Expand a job file into runs, execute them in parallel as far as the machine allows, and collect what they leave."""

__version__ = "0.1.0"
