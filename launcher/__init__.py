"""Expand a job file into runs, execute them in parallel as far as the machine allows, and collect the results."""

from pathlib import Path

__version__ = "0.1.0"
CHECKOUT = Path(__file__).parents[1]
"""The project's checkout, if the launcher runs from one."""
