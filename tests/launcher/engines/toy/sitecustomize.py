"""On PYTHONPATH of a test's processes: the launcher has one more engine, and the trainer is the fake one."""

import runpy
from pathlib import Path

from launcher.engines import registry

registry.ENGINES["toy"] = registry.Entry("toy_engine.engine:ToyEngine", options=("colour",))
runpy.run_path(str(Path(__file__).parents[2] / "fake" / "sitecustomize.py"))
