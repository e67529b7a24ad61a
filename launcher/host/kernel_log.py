"""The kernel's messages about processes that it ended for lack of memory. Linux, readable by root."""

from __future__ import annotations

import os
from pathlib import Path

KERNEL_LOG = Path("/dev/kmsg")


def ended_for_memory(group: str) -> bool:
    """Whether the kernel has killed a process because a control group, whose name contains `group`, was full.

    False also if the log cannot be read. The log is a ring: after weeks or a flood of messages it forgets.
    """
    if not group:
        return False
    wanted = group.encode()
    try:
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            try:
                record = os.read(log, 8192)  # one record at a time
            except BrokenPipeError:  # overwritten meanwhile: the next read continues with the oldest record
                continue
            if not record:
                return False
            _, _, group_of = record.partition(b"oom_memcg=")
            if wanted in group_of.partition(b",")[0]:
                return True
    except OSError:  # no more records
        return False
    finally:
        os.close(log)
