"""What 100,000 small images of 1,000 classes take: a run before its first epoch and in it, `analyze`, intervals.

`python -m tests.bench_large [--images 100000 --classes 1000] [--json FILE]` prints what it measures: CPU seconds of all
processes (other programs on the machine change the seconds of a clock), elapsed seconds, and the largest memory of a
process. The second run finds what the first one left in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    "model.name=resnet10t", "model.pretrained=false", "data=document_aug", "data.img_size=32", "training.epochs=1",
    "training.batch_size=256", "training.max_steps=50", "device=cpu", "training.precision=fp32",
]  # fmt: skip
INTERVALS = """
import numpy as np
from trainer.scores import intervals
targets = np.arange(20_000) % 1000
chance = np.random.default_rng(0)
predicted = np.where(chance.random(20_000) < 0.8, targets, chance.integers(0, 1000, 20_000))
assert intervals.interval(targets, predicted, 1000) is not None
"""


@dataclass
class Figure:
    """CPU and elapsed seconds, and the largest memory of a process in bytes."""

    cpu: float
    elapsed: float
    memory: int


def draw(folder: Path, images: int, classes: int) -> None:
    """Images of 16 x 16 pixels, PNG, one folder for each class. The noise on them makes each file another one."""
    chance = np.random.default_rng(0)
    for target in range(classes):
        place = folder / "train" / f"{target:04d}"
        place.mkdir(parents=True)
        base = np.random.default_rng(target + 1).integers(0, 200, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
        for number in range(images // classes):
            noise = chance.integers(0, 50, (16, 16, 3))
            Image.fromarray((base + noise).astype(np.uint8)).save(place / f"{number}.png", compress_level=1)


class Watched:
    """A command, and what it and the processes that it started took until now."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.memory = 0
        self.cpu: dict[int, float] = {}
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(0.2):
            self.look()

    def look(self) -> None:
        """Read the figures of the process and of those that it started from /proc."""
        pids = [self.process.pid]
        for pid in pids:
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                peak = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line]
            except OSError:
                continue
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self.memory = max(self.memory, *(int(line.split()[1]) * 1024 for line in peak), 0)

    def now(self) -> Figure:
        self.look()
        return Figure(round(sum(self.cpu.values()), 2), round(time.monotonic() - self.began, 2), self.memory)


def measure(command: list[str], environment: dict[str, str], mark: str = "") -> dict[str, Figure]:
    """What the command took in all, and until it printed a line with `mark`."""
    watched, figures, lines = Watched(command, environment), {}, []
    assert watched.process.stdout is not None
    for line in watched.process.stdout:
        lines.append(line)
        if mark and mark in line and "before" not in figures:
            figures["before"] = watched.now()
    watched.ended.set()
    _, code, usage = os.wait4(watched.process.pid, 0)
    if code:
        raise RuntimeError("".join(lines[-20:]))
    own = usage.ru_utime + usage.ru_stime  # with those that it waited for
    elapsed = round(time.monotonic() - watched.began, 2)
    figures["all"] = Figure(round(own, 2), elapsed, max(watched.memory, usage.ru_maxrss * 1024))
    return figures


def run(root: Path, images: int, classes: int) -> dict[str, Figure]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"DATA_DIR": str(root / "data"), "CACHE_DIR": str(root / "cache"), "PYTHONUNBUFFERED": "1"}
    results: dict[str, Figure] = {}

    def note(name: str, figure: Figure) -> None:
        results[name] = figure
        print(f"{name}: {figure.cpu:.1f} CPU s, {figure.elapsed:.1f} s, {figure.memory / 2**20:.0f} MiB", flush=True)

    note("intervals", measure([sys.executable, "-c", INTERVALS], environment)["all"])
    draw(root / "data", images, classes)
    for name in ("first run", "second run"):
        run_dir = root / name.replace(" ", "-")
        command = [sys.executable, "-m", "trainer", "train", *WORDS]
        found = measure(command, {**environment, "RUN_DIR": str(run_dir)}, " training and ")
        before, whole = found["before"], found["all"]
        note(f"{name}, before the first epoch", before)
        rest = Figure(whole.cpu - before.cpu, whole.elapsed - before.elapsed, whole.memory)
        note(f"{name}, 50 steps and a validation", rest)
    write = [sys.executable, "-m", "trainer", "analyze", "--checkpoint", str(root / "first-run" / "best.ckpt")]
    note("analyze", measure([*write, "--output", str(root / "report")], environment)["all"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), words.images, words.classes)
    load.append(os.getloadavg()[0])
    if words.json:
        record = {
            "command": f"python -m tests.bench_large --images {words.images} --classes {words.classes}",
            "what": "CPU seconds of all processes, elapsed seconds, bytes of the largest process",
            "machine": f"{_processor()}, {os.cpu_count()} cores, load {load[0]:.1f} before and {load[1]:.1f} after",
            "settings": WORDS,
            "figures": {name: asdict(figure) for name, figure in results.items()},
        }
        words.json.write_text(json.dumps(record, indent=2) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


if __name__ == "__main__":
    main()
