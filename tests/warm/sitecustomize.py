"""On PYTHONPATH of a test's processes: `python -m trainer …` becomes the stand-in of a fork of the warm process: it
passes signals on and ends as the fork ends. See server.py."""

import os
import sys
from pathlib import Path


def stand_in(address: str) -> None:
    """Returns where the warm process refuses: python then goes on as if this file were not there."""
    import json
    import signal
    import socket

    umask = os.umask(0)
    os.umask(umask)
    request = {"words": sys.orig_argv[3:], "cwd": str(Path.cwd()), "umask": umask, "environment": dict(os.environ)}
    warm = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warm.connect(address)
    socket.send_fds(warm, [json.dumps(request).encode()], [0, 1, 2])
    if warm.recv(10) == b"refused":
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: warm.send(str(number).encode()) and None)
    status = int(warm.recv(10) or signal.SIGKILL)  # nothing: the warm process itself was killed
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if sys.orig_argv[1:3] == ["-m", "trainer"] and "WARM_TRAINER" in os.environ:
    try:
        stand_in(os.environ["WARM_TRAINER"])
    except OSError as error:
        sys.stderr.write(f"tests/warm: {error}\n")
        os._exit(70)
