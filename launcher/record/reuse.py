"""Reuse of runs: a run with the same configuration, data and trainer that succeeded before is not repeated.

A run is identified by its configuration (`RunRequest.identity`), the content of its data, weights and teachers
(`data`), and the trainer's code (`code`). The files of a reused run are linked into the new submission, so that it is
complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from launcher.base.errors import RunError
from launcher.record import folders, trainer_files
from launcher.record.find import list_runs, list_submissions
from launcher.record.journal import append_event, read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import GOOD
from trainer.base import layout, provenance
from trainer.base.errors import DataError
from trainer.base.files import json_text, to_bytes

KEPT = ("best.ckpt", "metrics.json", "history.csv", "val_predictions.npz", "config.yaml")
"""Files that a reused run gets from its source."""
NEEDED = KEPT[:2]
UNIMPORTANT = (
    "data.root",
    "data.cache_gb",
    "model.weights",
    "training.teachers",
    "training.num_workers",
    "training.pin_memory",
)
"""Keys that do not change the result, or whose files are compared instead."""


@dataclass(frozen=True)
class EqualRun:
    """An earlier run that equals a run of the job. `stale`: made by another version of the trainer."""

    source: Path
    stale: bool


def identity(plain: Mapping[str, Any], texts: dict[int, tuple[object, str]] | None = None) -> str:
    """SHA-256 of a configuration without the keys that do not change the result.

    `texts` remembers the JSON of each section by its identity, for thousands of configurations that share sections.
    """
    texts = {} if texts is None else texts
    parts = []
    for key, value in sorted(plain.items()):
        if key == "resume" and value in (None, "auto"):
            continue  # resumes itself; another run's checkpoint would change the result
        if key == "choices" or not isinstance(value, dict):
            parts.append(f'"{key}": {_encode(value)}')
            continue
        if id(value) not in texts:
            relevant = {name: item for name, item in value.items() if f"{key}.{name}" not in UNIMPORTANT}
            texts[id(value)] = value, _encode(relevant)
        parts.append(f'"{key}": {texts[id(value)][1]}')
    return hashlib.sha256(("{" + ", ".join(parts) + "}").encode()).hexdigest()


_encode = json.JSONEncoder(sort_keys=True).encode


class TrainerImage(Protocol):
    """An image of the trainer, as an engine has it."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> str:
        """Names of the weights in the image, separated by commas."""

    @property
    def stale(self) -> bool | None:
        """Whether it was built from other sources than those here; None: unknown."""


def code_of(image: TrainerImage | None) -> str:
    """The version of the trainer: a digest of its sources here. An image that was built from other sources is a version
    of its own."""
    if image is not None and image.stale is not False:
        return image.id
    return provenance.code_fingerprint()


class DataDigests:
    """SHA-256 of runs' training data: train.csv, meta.csv, the files below train/, those of an own validation split,
    weights and teachers. (An ensemble.json contains the checksums of its members.)

    Lists each data folder once, however many runs train on it. Files are read again only if a name, size or
    modification time has changed. The folder `cache` keeps the digests.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache / "fingerprints"
        self._folders: dict[str, _Listing] = {}
        self._known: dict[tuple[str, ...], str] = {}

    def digest(self, folder: Path, weights: Path | None = None, teachers: Sequence[Path] = ()) -> str:
        """The digest; empty if there is nothing to train on. Raises OSError and RunFileError."""
        named = [("weights", weights)] if weights is not None else []
        named += [(f"teacher {number}", path) for number, path in enumerate(teachers)]
        key = (str(folder), *(f"{name} {path}" for name, path in named))
        if key not in self._known:
            if str(folder) not in self._folders:
                self._folders[str(folder)] = _Listing(folder)
            listing = self._folders[str(folder)]
            whole = bool(listing.files) and all(path.is_file() for _, path in named)
            self._known[key] = self._digest(listing, named) if whole else ""
        return self._known[key]

    def _digest(self, listing: _Listing, named: Sequence[tuple[str, Path]]) -> str:
        stats = listing.stats.copy()
        for name, path in named:
            stats.update(_line(name, path.stat()))
        place = self._cache / f"{stats.hexdigest()}.json"
        with suppress(OSError, ValueError, KeyError, TypeError), folders.opened(self._cache, 2) as folder:
            return str(json.loads(folders.read(folder, place.name))["sha256"])
        content = listing.content.copy()
        for name, path in named:
            with trainer_files.open_named(path) as file:
                _add(content, name, file)
        with suppress(OSError):  # without the cache it is only slower
            self._cache.mkdir(parents=True, exist_ok=True)
            folders.write(place, json_text({"sha256": content.hexdigest()}).encode(), 2)
        return content.hexdigest()


class _Listing:
    """The files of a data folder, the hash of their sizes and times, and that of their content."""

    def __init__(self, folder: Path) -> None:
        self.files: list[tuple[str, str]] = []
        self.stats = hashlib.sha256()
        try:
            parts = layout.find(folder)
        except (OSError, DataError):  # nothing to train on
            return
        for table in (parts.train_csv, parts.meta_csv, parts.validation_csv):
            if table is not None and table.is_file():
                self._append(table.name, str(table), table.stat())
        # Without a folder for training there is one folder per class, right here.
        images = [part for part in (parts.train, parts.validation) if part is not None] if parts.train else [folder]
        for place in images:
            prefix = f"{place.name}/" if place != folder else ""
            for name, path, stat in sorted(_walk(str(place), prefix, ()), key=lambda found: found[0].split("/")):
                if prefix or "/" in name:
                    self._append(name, path, stat)

    def _append(self, name: str, path: str, stat: os.stat_result) -> None:
        self.files.append((name, path))
        self.stats.update(_line(name, stat))

    @cached_property
    def content(self) -> hashlib._Hash:
        digest = hashlib.sha256()
        for name, path in self.files:
            with Path(path).open("rb") as file:
                _add(digest, name, file)
        return digest


def _line(name: str, stat: os.stat_result) -> bytes:
    """What a file that has changed has not kept: a program can restore the time of its content, not that of its inode,
    and a new file can have the inode of an old one."""
    return to_bytes(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}")


def _add(digest: hashlib._Hash, name: str, file: BufferedReader) -> None:
    content = hashlib.sha256()
    while piece := file.read(2**20):  # for images `hashlib.file_digest` takes three times as long, to make its buffer
        content.update(piece)
    digest.update(to_bytes(f"\0{name}\0") + content.digest())


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str, os.stat_result]]:
    """Name, path and stat of every file below the folder, also through links. A folder that cannot be listed counts as
    empty, and a link to a folder that contains it is not followed."""
    try:
        own = Path(folder).stat()
        entries = list(os.scandir(folder))
    except OSError:
        return
    if (own.st_dev, own.st_ino) in above:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, (own.st_dev, own.st_ino)))
        elif entry.is_file():
            yield f"{prefix}{entry.name}", entry.path, entry.stat()


def equal_runs(wanted: Iterable[RunRequest], runs_root: Path) -> dict[str, EqualRun]:
    """The latest equal run that succeeded, by the name of each `wanted` run. A run of the same code is preferred to one
    of other code."""
    requests_by_key: dict[tuple[str, str], list[RunRequest]] = {}
    for request in wanted:
        if request.kind == "train" and request.identity and request.data:
            requests_by_key.setdefault((request.identity, request.data), []).append(request)
    equal: dict[str, EqualRun] = {}
    if not requests_by_key:
        return equal
    for directory in reversed(list_submissions(runs_root)):
        try:
            run_dirs = list_runs(directory)
        except OSError:  # another user's, and not readable
            continue
        for run_dir in run_dirs:
            with suppress(RunError, OSError):  # damaged, or another user's and not readable: it serves nobody here
                earlier = read_request(run_dir)
                for request in requests_by_key.get((earlier.identity, earlier.data), ()):
                    stale = earlier.code != request.code
                    better = request.name not in equal or (equal[request.name].stale and not stale)
                    if better and _is_whole(run_dir):
                        equal[request.name] = EqualRun(run_dir, stale)
    return equal


def split(
    wanted: Sequence[RunRequest], runs_root: Path, fresh: bool, stale: bool
) -> tuple[dict[str, EqualRun], dict[str, Path]]:
    """The earlier runs that equal runs of the job (none if `fresh`), and those of them that can be reused. With `stale`
    runs of another version of the trainer can be reused, too."""
    equal = {} if fresh else equal_runs(wanted, runs_root)
    return equal, {name: run.source for name, run in equal.items() if stale or not run.stale}


def _is_whole(run_dir: Path) -> bool:
    good = read_status(run_dir).state in GOOD
    return good and all(trainer_files.has(run_dir, name) for name in NEEDED)


def link(source: Path, run_dir: Path) -> None:
    """Put the files of `source` into `run_dir`: as hard links if the file system and the files' owner allow them, else
    as copies. The trainer replaces files and never writes into them, so neither run changes the other. Raises
    RunFileError and OSError."""
    for name in KEPT:
        if trainer_files.has(source, name):
            trainer_files.link(source, name, run_dir)
    origin = read_status(source).figures.get("source") or f"{source.parent.name}/{source.name}"
    append_event(run_dir, "reused", reason=f"equals {origin}", source=origin)
