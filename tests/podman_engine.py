"""A Podman engine of the tests' own, through its Docker API: started and stopped here, with folders of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from tests.docker_engine import BUILD, Dockerd


def missing() -> str | None:
    """What this machine lacks for an engine of the tests' own."""
    if os.getuid() != 0:
        return "root is needed to start a Podman engine"
    absent = [tool for tool in ("podman", "runc", "docker", "mmdebstrap") if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)} (apt-get install podman runc docker.io mmdebstrap)" if absent else None


class Podman(Dockerd):
    """`podman system service` with its own images and containers."""

    log_name = "podman.log"

    def __init__(self) -> None:
        self.folder = BUILD / "test-podman"
        self.socket = self.folder / "podman.sock"
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def _command(self, *words: str) -> list[str]:
        # crun, its default, refuses the control groups of an old kernel's first version.
        command = ["podman", "--root", str(self.folder / "root"), "--runroot", str(self.folder / "runroot")]
        return [*command, "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--storage-driver", "overlay", *words]

    def _started(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        command = self._command("system", "service", "--time=0", self.host)
        with (self.folder / self.log_name).open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.client().ping():
                    return True
            except Exception:
                time.sleep(0.1)
        return False

    def close(self) -> None:
        self.stop()
        # Podman mounts this folder on itself and leaves it so: build/ could not be removed.
        subprocess.run(["umount", "--lazy", str(self.folder / "root" / "overlay")], capture_output=True)
