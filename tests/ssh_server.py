"""An sshd of the tests' own on loopback: its own port, keys and configuration; a folder that stands for the server."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.slurm_cluster import free_ports

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def missing() -> str | None:
    """What the tests over ssh lack here, and how to get it; None where all is there."""
    there = {"sshd": SSHD, **{name: shutil.which(name) for name in ("ssh", "ssh-keygen", "rsync")}}
    lacking = [name for name, path in there.items() if path is None]
    if not lacking:
        return None
    return f"{', '.join(lacking)} missing; on Debian: apt-get install openssh-client openssh-server rsync"


@dataclass
class SshServer:
    """Started and stopped by the test. `ssh` is the command that reaches it as `server`."""

    root: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """What its launcher has, whoever calls it."""

    @property
    def ssh(self) -> str:
        return shlex.join(["ssh", "-F", str(self.root / "ssh_config")])

    @property
    def folder(self) -> Path:
        """The checkout there."""
        return self.root / "the project"

    @property
    def host(self) -> str:
        return f"server:{self.folder}"

    def make(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / name], check=True)
        (self.port,) = free_ports(1)
        shutil.copy(self.root / "user.pub", self.root / "authorized")
        self.known("host")
        (self.root / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.root}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.root}/authorized\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        )
        (self.root / "ssh_config").write_text(
            f"Host server\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.root}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.root}/known\n"
            "  GlobalKnownHostsFile none\n"
        )

    def known(self, key: str) -> None:
        """Which host key the client takes for the server's."""
        (self.root / "known").write_text(f"[127.0.0.1]:{self.port} {(self.root / f'{key}.pub').read_text()}")

    def install(self, version: str = "") -> None:
        """A launcher in the server's folder: this tree's, with the fake trainer; `version` is what it says it is."""
        script = self.folder / ".venv" / "bin" / "launcher"
        script.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        if version:
            lines.append(f'if [ "$1" = --version ]; then echo {version}; exit; fi')
        lines.append(f'exec {shlex.quote(sys.executable)} -m launcher "$@"')
        script.write_text("#!/bin/sh\nunset LAUNCHER_RUNS DATA_DIR CUDA_VISIBLE_DEVICES\n" + "\n".join(lines) + "\n")
        script.chmod(0o755)

    def start(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it gives up its rights; a boot makes it else
        with (self.root / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.root / "sshd_config"], stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError((self.root / "sshd.log").read_text())

    def cut(self) -> int:
        """End every connection as a network does that goes away; returns how many processes served them."""
        assert self.process is not None
        serving = [p for p in psutil.Process(self.process.pid).children(recursive=True) if p.name().startswith("sshd")]
        for process in serving:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        return len(serving)

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.terminate()
            self.process.wait()
            self.process = None
