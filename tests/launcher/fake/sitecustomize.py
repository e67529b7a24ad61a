"""On PYTHONPATH of a test's processes: runs are executed by fake_trainer.py in place of `python -m trainer`, and GPUs
are locked in $FAKE_LOCKS. What is started as `python -m trainer` all the same (the launcher asks it for memory) is warm."""

import os
import runpy
import sys
import time
from pathlib import Path

if sys.orig_argv[1:3] == ["-m", "trainer"]:
    runpy.run_path(str(Path(__file__).parents[2] / "warm" / "sitecustomize.py"))
else:
    import launcher.engines.outcome as outcome

    outcome.GRACE = float(os.environ.get("FAKE_GRACE", outcome.GRACE))
    import launcher.engines.orphans as orphans
    import launcher.engines.process
    from launcher.engines import readiness
    from launcher.host import gpu_locks

    if "FAKE_CLOCK" in os.environ:  # the clock is set back by an hour once this file exists
        now, gate = time.time, Path(os.environ["FAKE_CLOCK"])
        time.time = lambda: now() - 3600 * gate.exists()
    readiness.why_no_hub = lambda contained=False: os.environ.get("FAKE_NO_HUB")
    orphans.LINGER, orphans.TERM = 0.1, 0.3
    if "FAKE_PATIENCE" in os.environ:
        from launcher.engines.docker import containers

        orphans.PATIENCE = containers.CLEARING = float(os.environ["FAKE_PATIENCE"])
    launcher.engines.process.ENTRY = (sys.executable, "-S", str(Path(__file__).with_name("fake_trainer.py")))
    gpu_locks.LOCKS = Path(os.environ["FAKE_LOCKS"])
