"""Stopping on request: SIGTERM or Ctrl-C lets the step end and last.ckpt be written; a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
from types import FrameType

from trainer.base.errors import StoppedError


class Stop:
    """What the signals asked for. Outside training they end the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on. Only the main thread may call this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred or (self.requested and number == signal.SIGINT):
            raise StoppedError(f"stopped by {signal.Signals(number).name}")
        self.requested = True


def ignore_in_worker(_worker: int) -> None:
    """For DataLoader workers: a signal to the process group is the parent's to act on, and it stops its workers."""
    import cv2
    import torch

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # one process a worker: threads inside it would only contend
    torch.set_num_threads(1)
