"""`python -m tests.warm.server DESCRIPTOR PACKAGE`: import all that the trainer (or the launcher) needs, once, and fork one for
whoever asks. A start takes milliseconds, not seconds. DESCRIPTOR is of a socket that listens. Ends with its standard input.

A request is one message: the words, folder and environment as JSON, and the three standard streams. The answer is
`begun`, then the fork's status as `wait` gives it. Meanwhile each message is the number of a signal for the fork."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from trainer.cli.imports import heavy

REPOSITORY = Path(__file__).parents[2]
WITHIN_FUNCTIONS = {
    "launcher": (
        "docker", "dotenv", "hydra.compose", "hydra.initialize", "omegaconf", "pandas", "psutil", "pydantic", "pynvml",
        "rich.progress", "rich.table", "yaml",
    ),
    "trainer": (
        "cleanlab.filter", "dotenv", "hydra.compose", "hydra.initialize", "matplotlib.pyplot", "onnxscript", "pandas",
        "scipy.optimize", "scipy.signal", "scipy.stats", "sklearn.metrics", "sklearn.model_selection", "torch.onnx",
    ),
}  # fmt: skip
"""Imported when they are used. Not onnxruntime, which starts a thread."""
READ_ON_IMPORT = ("HF_", "HOME", "LANG", "LC_", "MPL", "PYTHON", "TORCH_", "XDG_")
"""Beginnings of the variables that must be the same as here, else a fork would not be what a start gives."""
BUT_NOT = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED", "HF_HUB_DISABLE_")


def load(package: str) -> None:
    with heavy():
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in WITHIN_FUNCTIONS[package]:
        importlib.import_module(name)
    from trainer.config.compose import compose

    for model in ("resnet34", "resnet50"):  # the second one composes all options, which is kept
        compose([f"model={model}"])
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads: a fork would have but one of them"
    gc.collect()
    gc.freeze()  # or the first collection of each fork would copy every page


def read_on_import(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(READ_ON_IMPORT) and not k.startswith(BUT_NOT)}


AT_START = read_on_import(dict(os.environ))  # imports change it


def would_start(request: dict[str, Any], package: str) -> Path:
    """The folder of the package that `python -m trainer` would run there."""
    folders = [request["cwd"], *request["environment"].get("PYTHONPATH", "").split(os.pathsep)]
    return next((Path(folder) for folder in folders if (Path(folder) / package / "__init__.py").is_file()), Path("/"))


def become(request: dict[str, Any], streams: list[int], package: str) -> None:
    """In the fork: all that distinguishes one process from another."""
    os.setsid()
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    sys.argv[1:], sys.path[0] = request["words"], request["cwd"]
    sys.orig_argv[1:] = ["-m", package, *request["words"]]
    out, err = (io.BufferedWriter(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout = io.TextIOWrapper(out, write_through=bool(os.environ.get("PYTHONUNBUFFERED")))
    sys.stderr = io.TextIOWrapper(err, errors="backslashreplace", line_buffering=True)
    if package == "launcher":
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            if (Path(folder) / "sitecustomize.py").is_file():
                runpy.run_path(str(Path(folder) / "sitecustomize.py"))
                break
        return
    import numpy as np
    import torch

    np.random.seed()
    torch.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    if patch := os.environ.get("WARM_PATCH"):  # a file of Python code that a test has the trainer begin with
        exec(Path(patch).read_text(), {})


def asked(peer: socket.socket, package: str) -> tuple[dict[str, Any], list[int]] | None:
    """The request of `peer` and its three streams; None, and its answer, if a fork would not be what a start gives."""
    message, streams, _, _ = socket.recv_fds(peer, 2**20, 3)
    if message:
        request = json.loads(message)
        differ = {name for name, _ in read_on_import(request["environment"]).items() ^ AT_START.items()}
        with suppress(OSError):
            if not differ and would_start(request, package).samefile(REPOSITORY):
                return request, streams
        print(f"tests/warm: started cold, for {differ or would_start(request, package)}", file=sys.stderr)
        peer.send(b"refused")
    for stream in streams:
        os.close(stream)
    return None


def pass_on(peer: socket.socket, pid: int) -> bool:
    """Give the fork the signal that `peer` names. Returns false if the stand-in was killed: so is the fork, with all
    that it has started."""
    number = int(peer.recv(10) or 0)
    with suppress(ProcessLookupError):
        if number:
            os.kill(pid, number)
        else:
            os.kill(pid, signal.SIGKILL)
            os.killpg(pid, signal.SIGKILL)
    return number != 0


def serve(listener: socket.socket, package: str) -> None:
    """Returns in each fork. One process keeps all: a second fork for each request would copy its table of pages again."""
    loaded = False
    forks: dict[int, tuple[socket.socket, int]] = {}  # by descriptor of the process
    while True:
        waits = [peer for peer, _ in forks.values() if peer.fileno() >= 0]
        ready = select.select([listener, 0, *forks, *waits], [], [])[0]
        if 0 in ready:
            sys.exit()
        for ended, (peer, pid) in list(forks.items()):
            if ended in ready:
                status = os.waitpid(pid, 0)[1]
                with suppress(OSError):
                    peer.send(str(status).encode())
                peer.close()
                os.close(ended)
                del forks[ended]
            elif peer in ready and not pass_on(peer, pid):
                peer.close()
        if listener not in ready:
            continue
        peer, _ = listener.accept()
        if not loaded:  # not before somebody asks
            load(package)
            loaded = True
        if (request := asked(peer, package)) is None:
            peer.close()
            continue
        pid = os.fork()
        if pid == 0:
            for each in (listener, peer, *waits):
                each.close()
            for ended in forks:
                os.close(ended)
            return become(*request, package)
        for stream in request[1]:
            os.close(stream)  # or whoever reads what the trainer prints would never see its end
        forks[os.pidfd_open(pid)] = peer, pid
        peer.send(b"begun")


def finish(code: Any) -> NoReturn:
    """End the fork as Python ends a process, but without freeing each object, which would copy every page of memory."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    package = sys.argv[2]
    serve(socket.socket(fileno=int(sys.argv[1])), package)
    try:
        runpy.run_module(package, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        finish(end.code)
    finish(None)
