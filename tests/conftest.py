"""For all tests: in CI nothing may be skipped; trainers start warm; the real documents, where they are."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests import slurm_cluster
from tests.docker_engine import Dockerd, missing
from tests.slurm_cluster import Slurm

# A shell starts what it puts into the background with interrupts ignored, and children inherit that: tests that
# interrupt a launcher would then wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two tests at once would wait for each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits for another leaves the core to other tests
GROUPS = {
    "tests/launcher/engines/docker/test_podman.py": "podman",
    "tests/launcher/engines/docker/": "docker",
    "tests/launcher/engines/slurm/test_slurm": "docker",
    "tests/launcher/supervise/test_crashes.py": "docker",
}
"""Files that share an engine of these tests: each group follows one another on one worker. The first prefix counts."""
FIRST = ("tests/test_containers.py", "tests/launcher/remote/")
"""Files that take longest, and mostly wait: all other tests run beside them. The other tests that need the base image
come later: it is made by then."""
WARM = pytest.StashKey[dict[str, subprocess.Popen[bytes]]]()
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """What tests start as `python -m trainer` is forked from one process for the whole session, and so are commands of the
    launcher: see tests/warm."""
    if hasattr(config, "workerinput"):  # of xdist: its environment is that of the process that was started
        return
    root = Path(__file__).parents[1]
    os.environ["HF_HUB_OFFLINE"] = "1"  # read on import
    folder = tempfile.mkdtemp(prefix="warm-")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}  # no thread before a fork
    config.stash[WARM] = {}
    for package in ("launcher", "trainer"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:  # before a test can connect to it
            listener.bind(f"{folder}/{package}")
            listener.listen(64)
            config.stash[WARM][package] = subprocess.Popen(
                [sys.executable, "-m", "tests.warm.server", str(listener.fileno()), package],
                stdin=subprocess.PIPE, env=environment, start_new_session=True, pass_fds=[listener.fileno()],
            )  # fmt: skip
        os.environ[f"WARM_{package.upper()}"] = f"{folder}/{package}"
    os.environ["PYTHONPATH"] = f"{root / 'tests' / 'warm'}{os.pathsep}{root}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if WARM in config.stash:
        for server in config.stash[WARM].values():
            server.communicate()
        shutil.rmtree(Path(os.environ["WARM_TRAINER"]).parent)


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m trainer` is started as a user starts it."""
    monkeypatch.delenv("WARM_TRAINER")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A skip is for a user's machine that lacks something; in CI it is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr[2] if report.longrepr else ''}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`FIRST`, then the others in their order."""
    items.sort(key=lambda item: next((n for n, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file of tests goes to whichever worker is free, and so does each of `GROUPS`."""
    from xdist.scheduler import LoadScopeScheduling

    class OneForAnEngine(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path.startswith("tests/trainer/training/"):
                return nodeid  # the last and longest files: all workers end at the same time
            return next((group for prefix, group in GROUPS.items() if path.startswith(prefix)), path)

    return OneForAnEngine(config, log)


@pytest.fixture
def shared() -> Path:
    """The folder of the real documents and weights beside this checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: the real documents and weights are needed")
    return SHARED


@pytest.fixture(scope="session")
def dockerd() -> Generator[Dockerd, None, None]:
    """A Docker engine of the tests' own."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    engine = Dockerd()
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def slurm() -> Generator[Slurm, None, None]:
    """A Slurm of the tests' own."""
    lacking = slurm_cluster.missing()
    if lacking:
        pytest.skip(lacking)
    cluster = Slurm()
    cluster.start()
    yield cluster
    cluster.stop()
