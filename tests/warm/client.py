"""The launcher's commands for tests, in forks of a warm process: see server.py. Commands that a test signals or watches
from outside are started as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def launch(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m launcher` to its end. Returns its exit code (as `subprocess.run` gives it) and what it printed."""
    command = [sys.executable, "-m", "launcher", *words]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as warm:
        if not _begun(warm, words, cwd, env, pipes := [os.pipe(), os.pipe()]):
            return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        # `communicate` of a process that only passes on would need that process; two readers do the same.
        with os.fdopen(pipes[0][0]) as out, os.fdopen(pipes[1][0]) as err:
            printed = _read_both(out, err)
        code = os.waitstatus_to_exitcode(int(warm.recv(10) or signal.SIGKILL))
    return subprocess.CompletedProcess(command, code, *printed)


def _begun(warm: socket.socket, words: list[str], cwd: Path, env: dict[str, str], pipes: list[tuple[int, int]]) -> bool:
    """Whether a fork was started. If not, the pipes are closed."""
    umask = os.umask(0)
    os.umask(umask)
    request = {"words": words, "cwd": str(cwd), "umask": umask, "environment": env}
    warm.connect(os.environ["WARM_LAUNCHER"])
    with Path(os.devnull).open() as nothing:
        socket.send_fds(warm, [json.dumps(request).encode()], [nothing.fileno(), pipes[0][1], pipes[1][1]])
    for _, write in pipes:
        os.close(write)
    if warm.recv(10) == b"begun":
        return True
    for read, _ in pipes:
        os.close(read)
    return False


def _read_both(out: Any, err: Any) -> tuple[str, str]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(err.read)
        return out.read(), errors.result()
