"""How one run is executed: one module an engine, behind the protocol in `base`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from launcher import lease, runs
from launcher.engines.base import Engine


@cache
def engine(name: str) -> Engine:
    """The engine of that name: one in a process, so that what it knows is asked for once."""
    if name == "docker":
        from launcher.engines.docker import DockerEngine

        return DockerEngine()
    from launcher.engines.native import NativeEngine

    return NativeEngine()


def of(run_dir: Path) -> Engine:
    """The engine that the run's last event names."""
    return engine(str(runs.read_status(run_dir).figures.get("engine", "native")))


def settle(run_dir: Path, driving: bool = False) -> str | None:
    """Record how the run ended, where it has ended and nobody did so; why that cannot be known, or None.

    A run whose submission is driven is left to the launcher that drives it (`driving`: that is the caller).
    """
    status = runs.read_status(run_dir)
    if status.state not in ("starting", "running") or (not driving and lease.is_driven(run_dir.parent)):
        return None
    its = of(run_dir)
    try:
        its.settle(run_dir)
    except runs.RunError as error:
        return str(error)
    return its.trouble
