"""Stop on request: on SIGTERM or Ctrl-C the run ends its step and writes last.ckpt. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
from types import FrameType

from trainer.base.errors import StoppedError


class Stop:
    """The stop request of signals. Outside training a signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on. Call it in the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred or (self.requested and number == signal.SIGINT):
            raise StoppedError(f"stopped by {signal.Signals(number).name}")
        self.requested = True


def ignore_in_worker(_worker: int) -> None:
    """In DataLoader workers: ignore a signal to the process group. The parent handles it and stops its workers."""
    import cv2
    import torch

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # a worker needs no extra threads
    torch.set_num_threads(1)
