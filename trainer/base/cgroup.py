"""The limits of this process's control groups (cgroup v1 and v2)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """The smallest memory limit of this process's groups, bytes. None if there is no limit."""
    numbers = [number(folder / name) for folder, name in _files("memory.max", "memory.limit_in_bytes")]
    limits = [limit for limit in numbers if limit is not None and limit < 2**60]
    return min(limits) if limits else None


def cpu_limit() -> float | None:
    """The CPU limit of the groups, in cores. None if there is no limit."""
    quotas = []
    for folder, name in _files("cpu.max", "cpu.cfs_quota_us"):
        try:
            words = (folder / name).read_text().split()
            period = float(words[1]) if name == "cpu.max" else float((folder / "cpu.cfs_period_us").read_text())
            if words[0] not in ("max", "-1"):
                quotas.append(float(words[0]) / period)
        except (OSError, ValueError, IndexError):
            continue
    return min(quotas) if quotas else None


def oom_kills() -> int:
    """The number of processes in these groups that the kernel has killed because of full memory."""
    total = 0
    for folder, name in _files("memory.events", "memory.oom_control"):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            continue
        total = max(total, *(int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return total


def peak_files(pid: int) -> list[Path]:
    """The kernel's file with the peak memory of a process's group, bytes, including file caches."""
    files = _files("memory.peak", "memory.max_usage_in_bytes", str(pid))
    return [folder / name for folder, name in files if folder not in (ROOT, ROOT / "memory")][:1]


def _files(v2: str, v1: str, pid: str = "self") -> list[tuple[Path, str]]:
    """The existing files: in the process's own group and in the root, as a container sees it."""
    candidates: list[tuple[Path, str]] = []
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        relative = group.lstrip("/")
        if not controllers:
            candidates += [(ROOT / relative, v2), (ROOT, v2)]
        elif v1.split(".")[0] in controllers.split(","):
            candidates += [(ROOT / controllers / relative, v1), (ROOT / v1.split(".")[0] / relative, v1)]
            candidates += [(ROOT / v1.split(".")[0], v1)]
    return [(folder, name) for folder, name in candidates if (folder / name).is_file()]


def number(path: Path) -> int | None:
    """The number in a control group file. None if it has no number."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
