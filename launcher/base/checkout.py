"""The checkout that this launcher runs from, where it is one."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
