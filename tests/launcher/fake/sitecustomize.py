"""On PYTHONPATH of a test's processes: runs are executed by fake_trainer.py in place of `python -m trainer`."""

import sys
from pathlib import Path

import launcher.engines.process

launcher.engines.process.ENTRY = (sys.executable, "-S", str(Path(__file__).with_name("fake_trainer.py")))
