"""Stop on request: on SIGTERM or Ctrl-C the run ends its step and writes last.ckpt. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

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


POLL_SECONDS = 1.0
"""Time between two questions, about."""
MOST_STEPS = 1000
"""Most steps between two questions."""


@dataclass
class Poll:
    """When the processes of a run ask each other whether one of them got a stop signal: every `every` steps, which is
    about once a second. To ask, all processes must wait for each other and for the device. They all know the same
    `every`, because they compute it from the slowest process."""

    step: int = 0
    """The step of the last question."""
    every: int = 1
    _asked: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        return step - self.step >= self.every

    def ask(self, fabric: Any, requested: bool, step: int) -> bool:
        """Whether any process has a request. All processes must call this after the same `step`."""
        import torch

        now = time.monotonic()
        seconds = (now - self._asked) / max(1, step - self.step)
        mine = torch.tensor([float(requested), seconds], device=fabric.device)
        any_requested, slowest = fabric.all_reduce(mine, reduce_op="max").tolist()
        self.step, self._asked = step, now
        self.every = max(1, min(MOST_STEPS, int(POLL_SECONDS / max(slowest, 1e-9))))
        return bool(any_requested)


def ignore_in_worker(_worker: int) -> None:
    """In DataLoader workers: ignore a signal to the process group. The parent handles it and stops its workers."""
    import cv2
    import torch

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # a worker needs no extra threads
    torch.set_num_threads(1)
