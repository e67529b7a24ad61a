"""CPU seconds that two checkouts need to import what `train` needs, and the time from the last word to the prompt.

    python tests/measure_starts.py BEFORE AFTER [--turns 5]

Each is the folder of a checkout, with the packages of this Python unless it has a .venv. They are measured in turns.
`import` is what the process has used when its imports are done, scikit-learn's among them, which the split needs;
`whole` is a training of one step with everything (user and system time); `end` is the time from the last line of its
output to the end of the process. Run it without PYTHONDONTWRITEBYTECODE, once to write the bytecode and once to measure.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = """
import os, time
try:
    from trainer.cli.imports import heavy
except ImportError:
    import sklearn.model_selection
    import trainer.train
else:
    with heavy():
        import sklearn.model_selection
        from trainer.training.run import train
print(time.process_time(), flush=True)
os._exit(0)
"""
TRAIN = "model.name=test_resnet model.pretrained=false data.img_size=64 training.num_workers=0 training.max_steps=1"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="DIR")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    figures: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        python(options.checkouts[0], folder, ["-m", "trainer", "sample-data", str(data), "--classes", "3"])
        for turn in range(options.turns):
            for place, checkout in enumerate(options.checkouts):
                imported = float(python(checkout, folder, ["-c", IMPORTS])[0])
                words = ["-m", "trainer", "train", *TRAIN.split(), f"data.root={data}"]
                _, whole, end = python(checkout, folder, words, RUN_DIR=f"{folder}/run-{turn}-{place}")
                for name, figure in (("import", imported), ("whole", whole), ("end", end)):
                    figures.setdefault((place, name), []).append(figure)
    for name in ("import", "whole", "end"):
        before, after = (statistics.median(figures[place, name]) for place in (0, 1))
        print(f"{name:7} before {before:6.2f} s, after {after:6.2f} s: {after / before:.0%}")
        for place in (0, 1):
            print("       ", " ".join(f"{figure:.2f}" for figure in figures[place, name]))


def python(checkout: Path, folder: str, words: list[str], **environment: str) -> tuple[str, float, float]:
    """The last line that a Python in the checkout prints, the CPU seconds of its process and its children, and the
    seconds from that line to its end."""
    own = checkout / ".venv" / "bin" / "python"
    command = [str(own if own.exists() else sys.executable), *words]
    before = _children()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    last, spoke = "", time.monotonic()
    for line in process.stdout:
        last, spoke = line.strip(), time.monotonic()
    if process.wait() != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return last, _children() - before, time.monotonic() - spoke


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
