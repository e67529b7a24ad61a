"""On PYTHONPATH of a test's processes: runs are executed by fake_trainer.py in place of `python -m trainer`, and GPUs
are locked in $FAKE_LOCKS. What is started as `python -m trainer` all the same (the launcher asks it for memory) is warm."""

import os
import runpy
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def changes() -> dict[str, dict[str, Any]]:
    """What is different in the launcher's modules. They are changed when they are imported: hundreds of commands import
    few of them."""
    orphans: dict[str, Any] = {"LINGER": 0.1, "TERM": 0.3}
    changed: dict[str, dict[str, Any]] = {
        "launcher.engines.orphans": orphans,
        "launcher.engines.process": {"ENTRY": (sys.executable, "-S", str(Path(__file__).with_name("fake_trainer.py")))},
        "launcher.engines.readiness": {"why_no_hub": lambda contained=False: os.environ.get("FAKE_NO_HUB")},
        "launcher.host.gpu_locks": {"LOCKS": Path(os.environ["FAKE_LOCKS"])},
    }
    if "FAKE_GRACE" in os.environ:
        changed["launcher.engines.outcome"] = {"GRACE": float(os.environ["FAKE_GRACE"])}
    if "FAKE_PATIENCE" in os.environ:
        orphans["PATIENCE"] = float(os.environ["FAKE_PATIENCE"])
        changed["launcher.engines.docker.containers"] = {"CLEARING": orphans["PATIENCE"]}
    return changed


class Changing:
    """Finds the modules that are changed."""

    def __init__(self, changed: dict[str, dict[str, Any]]) -> None:
        self.changed = changed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self.changed else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            vars(module).update(self.changed[name])

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


if sys.orig_argv[1:3] == ["-m", "trainer"]:
    runpy.run_path(str(Path(__file__).parents[2] / "warm" / "sitecustomize.py"))
else:
    if "FAKE_CLOCK" in os.environ:  # the clock is set back by an hour once this file exists
        now, gate = time.time, Path(os.environ["FAKE_CLOCK"])
        time.time = lambda: now() - 3600 * gate.exists()
    different = changes()
    for its_name, its_values in different.items():
        if its_name in sys.modules:  # in a fork of a warm process
            vars(sys.modules[its_name]).update(its_values)
    sys.meta_path.insert(0, Changing(different))  # type: ignore[arg-type]
