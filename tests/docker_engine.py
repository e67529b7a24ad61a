"""A Docker engine of the tests' own: started and stopped here, killed where a test says so, with a stub GPU runtime."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import docker

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build"
BASE = "document-classifier-base:bookworm"
HOOK = "nvidia-container-runtime-hook"


def missing() -> str | None:
    """What this machine lacks for an engine of the tests' own."""
    if os.getuid() != 0:
        return "root is needed to start a Docker engine"
    absent = [tool for tool in ("dockerd", "mmdebstrap", "ip") if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)} (apt-get install docker.io mmdebstrap iproute2)" if absent else None


class Dockerd:
    """A dockerd with folders, a socket and a bridge of its own, so that two of them (`number` 0 and 1) get on. What it
    built stays in build/ for the next time."""

    log_name = "dockerd.log"

    def __init__(self, number: int = 0) -> None:
        self.folder = BUILD / f"test-engine-{number}"
        own = hashlib.sha256(str(self.folder).encode()).digest()  # another checkout's are others
        self.bridge, self.address = f"dt-{own.hex()[:8]}", f"10.213.{own[0]}.1/24"
        self.socket = self.folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that use it. The docker client of docker.io first: one without buildx may stand before it."""
        return {**os.environ, "DOCKER_HOST": self.host, "PATH": f"/usr/bin:{os.environ['PATH']}"}

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.host, timeout=60)

    def start(self) -> None:
        """Start it and wait until it answers. On a busy machine dockerd may give up waiting for its containerd: it is
        started again."""
        for _ in range(3):
            if self._started():
                return
        raise RuntimeError((self.folder / self.log_name).read_text()[-3000:])

    def _connect(self) -> None:
        """The bridge, as new: what a former engine left may be of another address."""
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)
        add = ["ip", "link", "add", self.bridge, "type", "bridge"]
        address = ["ip", "address", "add", self.address, "dev", self.bridge]
        for command in (add, address, ["ip", "link", "set", self.bridge, "up"]):
            subprocess.run(command, check=True, capture_output=True)

    def _started(self) -> bool:
        """A former one that was killed leaves files that must not matter."""
        if self.process is None:
            self._connect()
        hooks = self.folder / "hooks"
        hooks.mkdir(parents=True, exist_ok=True)
        hook = hooks / HOOK
        hook.write_text("#!/bin/sh\ncat >/dev/null\n")  # takes the container's description, does nothing
        hook.chmod(0o755)
        for stale in (self.folder / "docker.pid", self.folder / "exec" / "containerd" / "containerd.pid", self.socket):
            stale.unlink(missing_ok=True)
        command = ["dockerd", "--host", self.host, "--data-root", str(self.folder / "data")]
        command += ["--bridge", self.bridge]
        command += ["--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "docker.pid")]
        environment = {**os.environ, "PATH": f"{hooks}:{os.environ['PATH']}"}
        with (self.folder / self.log_name).open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.client().ping():
                    return True
            except Exception:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        self.stop()
        return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it with everything it started."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def close(self) -> None:
        """`stop` it for good."""
        self.stop()
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)

    def kill(self) -> None:
        """End dockerd and its containerd as a power cut would, but for what runs in containers."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=REPOSITORY, **more)

    def base(self) -> str:
        """The base image, made by the recipe that the README names; the second engine to ask has a copy."""
        if self.client().images.list(name=BASE):
            return BASE
        recipe = hashlib.sha256((REPOSITORY / "images" / "make-base.sh").read_bytes()).hexdigest()
        kept = BUILD / f"test-base-{recipe[:12]}.tar"
        with (BUILD / "test-base.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if kept.exists():
                done = self.run("docker", "load", "--input", str(kept))
            else:
                done = self.run("bash", "images/make-base.sh", BASE)
                assert done.returncode == 0, done.stdout + done.stderr
                done = self.run("docker", "save", "--output", f"{kept}.part", BASE)
                if done.returncode == 0:
                    Path(f"{kept}.part").rename(kept)
            assert done.returncode == 0, done.stdout + done.stderr
        return BASE

    def trainer(self, variant: str) -> str:
        """The trainer's image, built by the launcher where it is not what this checkout holds."""
        import sys

        self.base()
        done = self.run(sys.executable, "-m", "launcher", "build", variant, "--base", BASE)
        assert done.returncode == 0, done.stdout + done.stderr
        return f"document-classifier:{variant}"

    def fake(self) -> str:
        """A small image whose entry point is the fake trainer."""
        source = REPOSITORY / "tests" / "launcher" / "fake" / "fake_trainer.py"
        context = self.folder / "fake"
        context.mkdir(exist_ok=True)
        shutil.copy(source, context)
        text = f"FROM {self.base()}\nCOPY fake_trainer.py /\n"
        text += 'ENV HOME=/tmp/home NVIDIA_VISIBLE_DEVICES=all\nENTRYPOINT ["python3", "-S", "/fake_trainer.py"]\n'
        (context / "Dockerfile").write_text(text)
        self.client().images.build(path=str(context), tag="fake-trainer:test", rm=True)
        return "fake-trainer:test"
