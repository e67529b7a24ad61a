"""The shares of this host that runs in progress have, by their locks and by the engines."""

from __future__ import annotations

from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.host import account
from launcher.host.account import Share
from launcher.host.gpu_locks import GpuLock
from launcher.host.machine import Machine
from launcher.record.request import Resources

PATIENCE = 10.0
"""Seconds that a run without a supervisor waits for other launchers that are starting runs."""


def in_progress() -> list[Share]:
    """All shares of runs in progress, of any submission and user. Raises OSError if the folder of the locks cannot be
    used.

    Engines are asked only for runs whose launcher is gone. Removes the shares of those that have ended.
    """
    shares = account.shares()
    orphans: dict[str, list[Share]] = {}
    for share in shares:
        if not share.locked:
            orphans.setdefault(share.engine, []).append(share)
    alive = [share for share in shares if share.locked]
    for name, of_engine in orphans.items():
        try:
            running = registry.engine(name).still_runs({share.directory for share in of_engine})
        except RunError:  # an engine of another version of the launcher
            continue
        for share in of_engine:
            if running is None or share.directory not in running:
                if running is not None:
                    account.drop(share)
            else:
                alive.append(share)
    return alive


def claim(run_dir: Path, resources: Resources, machine: Machine) -> GpuLock:
    """Claim the share of a run that no supervisor starts. Raises RunError if others leave too little."""
    try:
        with account.exclusive(PATIENCE) as mine:
            if not mine:
                raise RunError(f"{run_dir.name}: other launchers are starting runs; repeat the command")
            cpus, memory = resources.cpus or 0, resources.memory or 0
            if why := account.why_not(cpus, memory, in_progress(), machine):
                raise RunError(f"{run_dir.name}: {why}")
            return account.claim(account.share_of(run_dir, cpus, memory, machine))
    except OSError as error:
        raise RunError(f"{run_dir.name}: {error}") from None
