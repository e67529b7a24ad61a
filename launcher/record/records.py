"""The launcher's own files of all runs of a submission, for commands and loops over thousands of runs."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.base.errors import RecordError, RunError
from launcher.record import folders
from launcher.record.find import list_runs
from launcher.record.folders import JOURNAL, PASSING, REQUEST, STATE, STATUS, Folder
from launcher.record.journal import Status, checked, last_event, read_events, recorded, status_of, unknown
from launcher.record.request import RunRequest, parse_request, read_request

Stamp = tuple[int, int, int]


class Records:
    """Reads through one open folder, and a journal again only if its size, time or inode has changed. Repairs
    status.json as `read_status` does. Use it as a context manager, in one thread."""

    def __init__(self, submission: Path) -> None:
        self.submission = submission
        self._kept = ExitStack()
        self._states: Folder | None = None
        self._seen: dict[str, tuple[Stamp, Status]] = {}
        self._dirs: dict[str, Path] = {}
        with suppress(OSError):  # a submission of the version before has no such folder
            self._states = self._kept.enter_context(folders.opened(submission / STATE, 2))

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder. It can be called again."""
        self._kept.close()

    def run_dirs(self) -> list[Path]:
        """See `list_runs`."""
        found = list_runs(self.submission)
        self._dirs = {run_dir.name: run_dir for run_dir in found}
        return found

    def _dir(self, name: str) -> Path:
        """The run's directory: made once, since paths of thousands of runs take as long as their files."""
        run_dir = self._dirs.get(name)
        if run_dir is None:
            run_dir = self._dirs[name] = self.submission / name
        return run_dir

    def status(self, name: str) -> Status:
        """See `read_status`."""
        return checked(self._dir(name), lambda: self._recorded(name))

    def _recorded(self, name: str) -> Status | None:
        stamp = self._stamp(name)
        if stamp is None:
            return recorded(self.submission / name)
        seen = self._seen.get(name)
        if seen is None or seen[0] != stamp:
            # The stamp was taken before the content is read: a change in between is seen the next time.
            event, length = last_event(self._read(name, JOURNAL), f"{self.submission}/{STATE}/{name}")
            copied = event is not None and self._is_copied(name, stamp, length)
            status = status_of(event) if event is not None and copied else recorded(self.submission / name)
            if status is None:
                return None
            seen = self._seen[name] = stamp, status
        return seen[1]

    def look(self, name: str) -> Status:
        """See `journal.look`."""
        try:
            return self.status(name)
        except OSError as error:
            return unknown(self._dir(name), error)

    def _is_copied(self, name: str, stamp: Stamp, length: int) -> bool:
        """Whether status.json is younger than the journal, and as long as it has to be."""
        assert self._states is not None
        try:
            found = os.stat(f"{name}/{STATUS}", dir_fd=self._states.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_mtime_ns >= stamp[1] and found.st_size == length

    def journal(self, name: str) -> bytes:
        """The content of a run's journal; empty if it has none. Raises OSError."""
        with suppress(FileNotFoundError):
            if self._states is None or self._stamp(name) is None:
                with folders.state(self.submission / name) as folder:
                    return folders.read(folder, JOURNAL)
            return self._read(name, JOURNAL)
        return b""

    def events(self, name: str) -> list[dict[str, Any]]:
        """See `read_events`."""
        return read_events(self.submission / name)

    def request(self, name: str) -> RunRequest:
        """See `read_request`."""
        if self._states is not None:
            try:
                return parse_request(self._read(name, REQUEST), self._dir(name))
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in PASSING:
                    raise
                raise RecordError(f"{error.filename}: {error.strerror}") from None
        return read_request(self._dir(name))

    def look_at_request(self, name: str) -> RunRequest | Status:
        """The request of a run, or its status `unknown` with the reason why the request cannot be used."""
        try:
            return self.request(name)
        except (OSError, RunError) as error:
            return unknown(self._dir(name), error, REQUEST)

    def _stamp(self, name: str) -> Stamp | None:
        """Changes whenever the journal does. None if the run is of the version before, or has no journal."""
        if self._states is None:
            return None
        try:
            found = os.stat(f"{name}/{JOURNAL}", dir_fd=self._states.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _read(self, name: str, file: str) -> bytes:
        assert self._states is not None
        try:
            descriptor = os.open(name, folders.FOLDER | os.O_NOFOLLOW, dir_fd=self._states.descriptor)
        except OSError:
            descriptor = folders.inside(self._states, name)  # raises an error that says more
        try:
            owner = os.fstat(descriptor).st_uid
            return folders.read(Folder(descriptor, self._states.path, owner), file)
        except OSError as error:
            error.filename = str(self._states.path / name / file)
            raise
        finally:
            os.close(descriptor)
