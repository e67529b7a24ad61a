"""Links in a data folder that lead out of it, or back into it by this host's path: a container would not see their
targets.

They are mounted read-only at the path that the link names. Data may come from anywhere, so not every target is mounted:
never a folder that contains the data or somebody's home, nothing hidden, and of linked files only themselves, or their
folder if it has nothing but such files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from launcher.base.errors import DataFolderError
from launcher.engines.docker.recipe import CACHE, COMPILED, DATA, RUNS, SECRETS, exchangeable, is_written_by_runs
from launcher.record.request import RunRequest
from trainer.base import layout
from trainer.base.errors import DataError

MOST = 32
"""Mounts of single files for one data folder."""
SHOWN = 3
"""Links that a message names."""
SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys", "usr", "var")
"""Folders at the root of a file system whose content is never data, unless it lies in `DEEPER`."""
DEEPER = tuple(map(Path, ("/usr/local/share", "/usr/share", "/var/lib", "/var/tmp", "/var/data", "/run/media")))
TAKEN = tuple(map(Path, (DATA, RUNS, CACHE, COMPILED, SECRETS, "/opt/app", "/opt/venv", "/opt/weights")))
"""Folders of a run's container that no link may replace, or add to."""


@dataclass
class Links:
    """The links of a data folder that need a mount, and those that cannot be mounted."""

    mounts: dict[str, str] = field(default_factory=dict)
    """Path in the container → path on this host."""
    named: dict[str, str] = field(default_factory=dict)
    """The first links whose targets are mounted → their targets."""
    refused: dict[str, str] = field(default_factory=dict)
    """A link → why its target is not mounted."""


def notes(folder: str) -> list[str]:
    """The notes on a submission's data folder. Raises DataFolderError if containers could not follow its links."""
    found = _checked(str(Path(folder).resolve()), DATA)
    if not found.mounts:
        return []
    named = ", ".join(f"{link} → {target}" for link, target in found.named.items())
    more = " …" if len(found.mounts) > len(found.named) else ""
    return [f"note: containers also see, read-only, where links of the data lead: {named}{more}"]


def added(requests: Sequence[RunRequest]) -> list[RunRequest]:
    """The requests with the targets of the links in their data. Raises DataFolderError."""
    completed = []
    for request in requests:
        mounts: dict[str, str] = {}
        if request.data_dir:
            mounts |= _checked(request.data_dir, DATA).mounts
        if root := request.config.get("root"):  # mounted under its own path
            path = os.path.abspath(Path(request.cwd or ".") / Path(str(root)).expanduser())  # noqa: PTH100  # keeps links
            mounts |= _checked(path, path).mounts
        completed.append(dataclasses.replace(request, links=mounts) if mounts else request)
    return completed


def _checked(folder: str, inside: str) -> Links:
    found = links(folder, inside)
    if not found.refused:
        return found
    shown = "; ".join(f"{link} {why}" for link, why in list(found.refused.items())[:SHOWN])
    more = f"; and {len(found.refused) - SHOWN} more" if len(found.refused) > SHOWN else ""
    raise DataFolderError(
        f"{folder}: containers cannot follow {len(found.refused)} of its links: {shown}{more}; copy the files "
        f"(cp -rL {folder} NEW_FOLDER) and give them with --data NEW_FOLDER, or use --engine native"
    )


@cache
def links(folder: str, inside: str) -> Links:
    """The links below the data folder `folder`, which a container has at `inside`. Reads it once per process.

    A link that leads nowhere on this host, too, and a folder that cannot be read, are left to the trainer's own check.
    """
    data, found = Path(folder).resolve(), Links()
    cache, known = cache_of_all(), dict[Path, tuple[Path, str] | None]()
    visible = {Path(inside): data}
    """Folders of the container → folders of this host."""
    files: dict[tuple[Path, Path], dict[str, str]] = {}
    to_read, read = [(data, Path(inside))], set[Path]()
    while to_read:
        place, its_path = to_read.pop()
        if place in read or (place != data and is_written_by_runs(place, cache)):  # a run may have made links there
            continue
        read.add(place)
        for name, is_link, is_folder in _entries(place, _read_at_the_top(data) if place == data else None):
            link, path = place / name, its_path / name
            if not is_link:
                to_read += [(link, path)] if is_folder else []
                continue
            if inner := _leads_into_runs(link, cache, known):
                found.refused[str(link)] = f"leads into {inner[0]}, where runs can exchange it"
                continue
            try:
                target, named = link.resolve(strict=True), link.readlink()
            except (OSError, RuntimeError):  # it leads nowhere, or round in circles
                continue
            seen_as = Path(os.path.normpath(its_path / named))
            if _host_path(seen_as, visible) == target:
                continue
            if target.is_relative_to(data):  # by this host's path: the data is mounted there, too
                whole, rest = str(seen_as), f"/{target.relative_to(data)}"
                seen_as, target = Path(whole.removesuffix(rest) if whole.endswith(rest) else "/"), data
            elif target.is_file():
                files.setdefault((seen_as.parent, target.parent), {})[seen_as.name] = target.name
                if len(found.named) < SHOWN:
                    found.named[str(link)] = str(target)
                continue
            if why_not := why_not_mounted(target, seen_as, data):
                found.refused[str(link)] = f"leads to {target}, {why_not}"
                continue
            visible[seen_as] = target
            found.mounts[str(seen_as)] = str(target)
            if len(found.named) < SHOWN:
                found.named[str(link)] = str(target)
            to_read.append((target, seen_as))
    _add_files(found, files, data)
    return found


def _read_at_the_top(data: Path) -> list[str] | None:
    """The names that the trainer reads at the top of a data folder that has train/. None: it may read everything."""
    try:
        parts = layout.find(data)
    except (OSError, DataError):
        return None
    if parts.train is None:
        return None
    return [path.name for path in (*parts.read, parts.test, parts.sample_csv) if path is not None]


def cache_of_all() -> Path | None:
    """The cache that $CACHE_DIR names; None for the default one, which is hidden in the runs folder."""
    given = os.environ.get("CACHE_DIR")
    return Path(given).expanduser() if given else None


def _leads_into_runs(
    link: Path, cache: Path | None, known: dict[Path, tuple[Path, str] | None]
) -> tuple[Path, str] | None:
    """See `exchangeable`. `known` keeps the answers for the folders of the targets: there may be thousands of links."""
    try:
        target = link.parent / link.readlink()
    except OSError:  # it has been removed
        return None
    if target.parent not in known:
        known[target.parent] = exchangeable(target.parent, cache)
    inner = known[target.parent]
    return inner or (exchangeable(target, cache) if target.is_symlink() or target.is_dir() else None)


def _add_files(found: Links, files: dict[tuple[Path, Path], dict[str, str]], data: Path) -> None:
    """Mount linked files one by one, or their folder if there are many and it has nothing else."""
    many = sum(map(len, files.values())) > MOST
    for (its_path, folder), names in files.items():
        why_not = ""
        if many and len(names) > 1:
            why_not = _why_not_whole(folder, names) or why_not_mounted(folder, its_path, data)
            if not why_not:
                found.mounts[str(its_path)] = str(folder)
                continue
        for name, target_name in names.items():
            path, target = its_path / name, folder / target_name
            bad = why_not_mounted(target, path, data)
            if not bad and len(found.mounts) >= MOST:
                bad = f"one of more than {MOST} linked files" + (f", and {why_not}" if why_not else "")
            if bad:
                found.refused[str(path)] = f"leads to {target}, {bad}"
            else:
                found.mounts[str(path)] = str(target)


def _why_not_whole(folder: Path, names: dict[str, str]) -> str:
    """Why the folder of linked files is not mounted as a whole; empty if it may be."""
    if any(name != target for name, target in names.items()):
        return "the links have other names than their files"
    kinds = {Path(target).suffix.lower() for target in names.values()}
    for name, is_link, is_folder in _entries(folder, hidden=True):
        if is_link or is_folder or Path(name).suffix.lower() not in kinds:
            return f"{folder} has more than such files: {name}"
    return ""


def why_not_mounted(target: Path, path: Path, data: Path) -> str:
    """Why a target on this host is not mounted at `path` of a container; empty if it may be. Both are absolute."""
    if target != data:
        if any(part.startswith(".") for part in target.parts):
            return "which is hidden"
        around = data.is_relative_to(target) or Path.home().resolve().is_relative_to(target)
        if around or (target.parts[1] == "home" and len(target.parts) < 4):
            return "a folder around the data, or a home"
        if _is_system(target):
            return "a part of the system"
    if any(path.is_relative_to(taken) or taken.is_relative_to(path) for taken in TAKEN) or _is_system(path):
        return f"which a container would need at {path}, where it has something else"
    return "which a container would need at /tmp" if path == Path("/tmp") else ""


def _is_system(path: Path) -> bool:
    return path.parts[1] in SYSTEM and not any(deeper in path.parents for deeper in DEEPER)


def _host_path(path: Path, visible: dict[Path, Path]) -> Path | None:
    """The real path on this host of a container's path, by the innermost folder that is visible there."""
    for inside in (path, *path.parents):
        if inside in visible:
            return (visible[inside] / path.relative_to(inside)).resolve()
    return None


def _entries(folder: Path, only: Sequence[str] | None = None, hidden: bool = False) -> list[tuple[str, bool, bool]]:
    """Name, whether it is a link, and whether it is a folder, of each entry."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False))
                for entry in entries
                if (hidden or not entry.name.startswith(".")) and (only is None or entry.name in only)
            )
    except OSError:
        return []
