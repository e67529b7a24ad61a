"""Part of `make bench`: what the launcher costs over a plain loop on the Docker SDK, for containers that do nothing.

Twenty containers, four at once, by turns and in one run, each way a process of its own: `launcher submit` as a user types
it (checks, directories, journals, leaderboard and all), a thread loop with the same container options, and one with the
SDK's own. Then how long a real run takes to its first step, in a container and as a process.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher.record.find import find_submission, list_runs
from launcher.record.journal import read_events
from tests.docker_engine import REPOSITORY, Dockerd, missing
from trainer.data.drawn import write_sample_data

COUNT, PARALLEL, ROUNDS = 20, 4, 3
JOB = """
image: trivial:bench
matrix: {{seed: [{seeds}]}}
overrides: {{model: resnet34, model.pretrained: false}}
resources: {{cpus: 0.5}}
max_parallel: {parallel}
"""


# Start, wait, log, remove: by a pool of threads, as anybody would write it.
LOOP = """
import sys
from concurrent.futures import ThreadPoolExecutor

import docker

client = docker.from_env()
folder, count, parallel, confined = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "confined"
options = dict(
    network_mode="none", cap_drop=["ALL"], security_opt=["no-new-privileges:true"], read_only=True, tmpfs={"/tmp": ""},
    init=True, pids_limit=4096, user="1000:1000", nano_cpus=500_000_000,
) if confined else {}
def one(number):
    container = client.containers.run(
        "trivial:bench", [str(number)], detach=True, volumes={folder: {"bind": "/runs", "mode": "rw"}}, **options
    )
    code = container.wait()["StatusCode"]
    container.logs()
    container.remove()
    return code
with ThreadPoolExecutor(parallel) as pool:
    assert set(pool.map(one, range(count))) == {0}
"""


def plain(dockerd: Dockerd, folder: Path, options: str) -> None:
    """A loop on the SDK."""
    command = [sys.executable, "-c", LOOP, str(folder), str(COUNT), str(PARALLEL), options]
    subprocess.run(command, check=True, env=dockerd.environment)


def launched(dockerd: Dockerd, folder: Path) -> None:
    """The same through the launcher."""
    words = ["submit", str(folder / "job.yaml"), "--engine", "docker", "--data", str(folder / "data")]
    command = [sys.executable, "-m", "launcher", *words, "--runs", str(folder / "runs")]
    subprocess.run(command, check=True, env=dockerd.environment, stdout=subprocess.DEVNULL)


def timed(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure(dockerd: Dockerd) -> dict[str, float]:
    """Medians in seconds."""
    image = f'FROM {dockerd.base()}\nENTRYPOINT ["/bin/true"]\n'
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "data" / "train" / "a").mkdir(parents=True)
        (folder / "image").mkdir()
        (folder / "image" / "Dockerfile").write_text(image)
        seeds = ", ".join(map(str, range(COUNT)))
        (folder / "job.yaml").write_text(JOB.format(seeds=seeds, parallel=PARALLEL))
        dockerd.client().images.build(path=str(folder / "image"), tag="trivial:bench")
        ways: dict[str, Callable[[], None]] = {
            "launcher": lambda: launched(dockerd, folder),
            "same options": lambda: plain(dockerd, folder, "confined"),
            "SDK defaults": lambda: plain(dockerd, folder, ""),
        }
        for way in ways.values():
            way()  # what is only slow once
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name].append(timed(way))
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def first_step(dockerd: Dockerd, folder: Path, engine: str, runs_root: Path) -> float:
    """Seconds from the announcement of a run to the end of its first optimiser step."""
    words = ["submit", "model.name=resnet10t", "model.pretrained=false", "data.img_size=64", "training.max_steps=1"]
    words += [
        "training.batch_size=8",
        "training.num_workers=1",
        "--set",
        "resources.cpus=1",
        "--engine",
        engine,
        "--fresh",
    ]
    command = [sys.executable, "-m", "launcher", *words, "--data", str(folder), "--runs", str(runs_root)]
    subprocess.run(command, check=True, env=dockerd.environment, stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    (run_dir,) = list_runs(find_submission(runs_root))
    announced = next(event["time"] for event in read_events(run_dir) if event["state"] == "starting")
    progress = json.loads((run_dir / "progress.json").read_text())
    return float(progress["first_step_time"]) - float(announced)


def measure_starts(dockerd: Dockerd) -> dict[str, float]:
    """Medians in seconds."""
    dockerd.trainer("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_sample_data(folder / "data", classes=3, per_class=10)
        times: dict[str, list[float]] = {"docker": [], "native": []}
        for turn in range(ROUNDS + 1):
            for engine, seconds in times.items():
                took = first_step(dockerd, folder / "data", engine, folder / engine)
                seconds += [took] if turn else []  # the first turn warms up
    return {engine: statistics.median(seconds) for engine, seconds in times.items()}


def main() -> None:
    lacking = missing()
    if lacking:
        print(f"containers: not measured: {lacking}")
        return
    dockerd = Dockerd()
    dockerd.start()
    try:
        medians = measure(dockerd)
        starts = measure_starts(dockerd)
    finally:
        dockerd.close()
    print(f"{COUNT} containers that do nothing, {PARALLEL} at once; medians of {ROUNDS} turns on {platform.machine()}")
    for name, seconds in medians.items():
        ratio = "" if name == "launcher" else f"   launcher / this: {medians['launcher'] / seconds:.2f}"
        print(f"  {name:14} {seconds:6.2f} s{ratio}")
    print(f"from the start of a run to the end of its first step, resnet10t at 64 px; medians of {ROUNDS} turns")
    for engine, seconds in starts.items():
        print(f"  {engine:14} {seconds:6.2f} s   this / native: {seconds / starts['native']:.2f}")
    print(json.dumps({"containers": medians, "first_step": starts}))


if __name__ == "__main__":
    main()
