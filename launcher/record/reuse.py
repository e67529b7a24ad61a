"""Reuse of runs: a run with the same configuration, data and trainer that succeeded before is not repeated.

A run is identified by its configuration (`RunRequest.identity`), the content of its data, weights and teachers
(`data`), and the trainer's code (`code`). The files of a reused run are linked into the new submission, so that it is
complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.base.errors import RunError
from launcher.record.find import list_runs, list_submissions
from launcher.record.journal import append_event, read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import GOOD
from trainer.base import provenance
from trainer.base.files import to_bytes, write_json

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


def identity(plain: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration without the keys that do not change the result."""
    relevant = {key: dict(value) if isinstance(value, dict) else value for key, value in plain.items()}
    for key in UNIMPORTANT:
        section, _, leaf = key.rpartition(".")
        (relevant.get(section, {}) if section else relevant).pop(leaf, None)
    if relevant.get("resume") in (None, "auto"):  # resumes itself; another run's checkpoint would change the result
        relevant.pop("resume", None)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


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


def data_of(folder: Path, weights: Path | None, cache: Path, teachers: Sequence[Path] = ()) -> str:
    """SHA-256 of a run's training data: train.csv, meta.csv, the files below train/, its weights and its teachers.
    Empty if there is nothing to train on. (An ensemble.json contains the checksums of its members.)

    Files are read again only if a name, size or modification time has changed. The folder `cache` keeps the digests.
    """
    files = [path for name in ("train.csv", "meta.csv") if (path := folder / name).is_file()]
    images = folder / "train" if (folder / "train").is_dir() else folder  # else one folder per class, right here
    files += sorted(
        Path(place, name)
        for place, _, names in os.walk(images, followlinks=True)
        for name in names
        if place != str(folder) and Path(place, name).is_file()
    )
    named = [("weights", weights)] if weights is not None else []
    named += [(f"teacher {number}", path) for number, path in enumerate(teachers)]
    if not files or not all(path.is_file() for _, path in named):
        return ""
    listed = [(path.relative_to(folder).as_posix(), path) for path in files] + named
    return _cached_digest(listed, cache / "fingerprints")


def _cached_digest(listed: Sequence[tuple[str, Path]], cache: Path) -> str:
    listing = hashlib.sha256()
    for name, path in listed:
        stat = path.stat()
        listing.update(to_bytes(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"))
    place = cache / f"{listing.hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(place.read_text(encoding="utf-8"))["sha256"])
    digest = hashlib.sha256()
    for name, path in listed:
        with path.open("rb") as file:
            digest.update(to_bytes(f"\0{name}\0") + hashlib.file_digest(file, "sha256").digest())
    with suppress(OSError):  # without the cache it is only slower
        write_json(place, {"sha256": digest.hexdigest()})
    return digest.hexdigest()


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
        for run_dir in list_runs(directory):
            with suppress(RunError):
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
    return good and all((run_dir / name).is_file() for name in NEEDED)


def link(source: Path, run_dir: Path) -> None:
    """Put the files of `source` into `run_dir`: as hard links if the file system and the files' owner allow them, else
    as copies. The trainer replaces files and never writes into them, so neither run changes the other. Raises
    OSError."""
    for name in KEPT:
        if (source / name).is_file():
            try:
                os.link(source / name, run_dir / name, follow_symlinks=False)
            except OSError:
                shutil.copyfile(source / name, run_dir / name)
    origin = read_status(source).figures.get("source") or f"{source.parent.name}/{source.name}"
    append_event(run_dir, "reused", reason=f"equals {origin}", source=origin)
