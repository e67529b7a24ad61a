"""The launcher's commands in processes of their own, over a trainer that keeps the contract and takes milliseconds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from launcher.host import gpu_locks
from launcher.record.find import find_run, find_submission, list_runs
from launcher.record.journal import Status, read_status
from tests.docker_engine import Dockerd
from tests.slurm_cluster import Slurm
from tests.warm.client import launch

settings.register_profile("no deadline", deadline=None)  # a busy machine takes its time
settings.load_profile("no deadline")
FAKE = Path(__file__).parent / "fake"
NO_ENGINE = "unix:///nonexistent/docker.sock"
REPOSITORY = Path(__file__).parents[2]
LABEL = "document-classifier.directory"
SEEDS = "matrix: {{seed: [{}]}}\noverrides: {{model: resnet34}}\n"


def seeds(count: int, more: str = "") -> str:
    """A job of `count` runs."""
    return SEEDS.format(", ".join(map(str, range(count)))) + more


def unwrapped(text: str) -> str:
    """The words of a command's output, whose long lines are broken."""
    return " ".join(text.split())


def pipe(path: Path) -> None:
    """Replaces a file by a named pipe, which no reader may wait for."""
    path.unlink()
    os.mkfifo(path)


def wait_for(condition: Callable[[], Any], what: str = "condition", seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never came: {what}")


@dataclass
class Lab:
    """A folder with data, runs and a journal of what the fake trainer was asked."""

    root: Path
    folder: str = "runs"
    plan: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.root / self.folder

    def arguments(self) -> dict[str, Any]:
        """Of `subprocess.run`, for a command in the lab."""
        environment = {
            **os.environ,
            "PYTHONPATH": f"{FAKE}{os.pathsep}{REPOSITORY}",  # this tree, wherever the venv points
            "FAKE_PLAN": json.dumps(self.plan),
            "FAKE_LOG": str(self.root / "journal"),
            "FAKE_LOCKS": str(gpu_locks.LOCKS),
            "LAUNCHER_RUNS": str(self.runs),
            "DOCKER_HOST": NO_ENGINE,
            **self.environment,
        }
        for name in ("CUDA_VISIBLE_DEVICES", "DATA_DIR"):
            if name not in self.environment:
                environment.pop(name, None)
        return {"cwd": self.root, "env": environment, "text": True}

    def launcher(self, *words: str) -> subprocess.CompletedProcess[str]:
        arguments = self.arguments()
        if "PYTHONPATH" in self.environment:  # modules that the warm process has not imported
            command = [sys.executable, "-m", "launcher", *words]
            return subprocess.run(command, capture_output=True, **arguments)
        return launch(list(words), arguments["cwd"], arguments["env"])

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launcher", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **pipes, **self.arguments())
        self.processes.append(process)
        return process

    def job(self, text: str, name: str = "job.yaml") -> str:
        (self.root / name).write_text(text)
        return name

    def machine(self, gpus: int = 0, cpus: int = 16, memory: str = "64g") -> str:
        (self.root / "machine.yaml").write_text(f"{{gpus: {gpus}, cpus: {cpus}, memory: {memory}}}")
        return "--machine=machine.yaml"

    def journal(self, what: str | None = None) -> list[dict[str, Any]]:
        try:
            lines = (self.root / "journal").read_text().rpartition("\n")[0].splitlines()  # whole ones
        except FileNotFoundError:
            return []
        events = [json.loads(line) for line in lines]
        return [event for event in events if what in (None, event["what"])]

    def left(self) -> list[int]:
        """The processes that trainers have started and not ended."""
        return [int(event["what"].split()[1]) for event in self.journal() if event["what"].startswith("left ")]

    def submission(self) -> Path:
        return find_submission(self.runs)

    def states(self, submission: Path | None = None) -> dict[str, str]:
        paths = list_runs(submission or self.submission())
        return {path.name.partition("-")[2]: read_status(path).state for path in paths}

    def status(self, run: str) -> Status:
        return read_status(find_run(self.runs, run))


@pytest.fixture(scope="session")
def locks() -> Iterator[None]:
    """A folder of GPU locks for this process's labs: another one's tests may number their GPUs likewise."""
    with tempfile.TemporaryDirectory(prefix="gpu-locks-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o1777)  # as gpu_locks makes it: for every user of the host
        patch.setattr(gpu_locks, "LOCKS", Path(folder))
        yield


@pytest.fixture
def lab(locks: None, tmp_path: Path) -> Any:
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)  # a class without files: nothing that could be reused
    made = Lab(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for pid in [*(event["pid"] for event in made.journal("begin")), *made.left()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


@pytest.fixture(scope="module")
def image(dockerd: Dockerd) -> str:
    return dockerd.fake()


@pytest.fixture
def box(lab: Lab, dockerd: Dockerd, image: str) -> Iterator[Lab]:
    """A lab whose runs are containers: `job` files name the image and pass the plan."""
    lab.root.chmod(0o755)
    lab.environment = {"DOCKER_HOST": dockerd.host, "PATH": dockerd.environment["PATH"], "FAKE_LOG": ""}
    yield lab
    for container in dockerd.client().containers.list(all=True, filters={"label": LABEL}):
        if container.labels[LABEL].startswith(str(lab.root)):
            container.remove(force=True)


@pytest.fixture
def cluster(lab: Lab, slurm: Slurm) -> Iterator[Lab]:
    """A lab whose runs Slurm starts."""
    lab.environment, lab.folder = dict(slurm.environment), "runs of 50%a"
    yield lab
    slurm.clear()
