"""The files in a run directory: the one place that opens, copies, links, removes or hands them over.

The code of a run is not trusted: any image that keeps the contract may run. Each of these names may be a link, a pipe,
a device or a file of any size and content, and it may be exchanged at any moment. So a file is opened from a descriptor
of its folder, without links and without waiting, and it counts only if it is a regular file of the run's own, not
larger than its limit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from launcher.base.errors import RunFileError
from launcher.base.sizes import GIB, show_size
from launcher.base.text import LAST, end
from launcher.record import folders
from launcher.record.folders import Folder
from trainer.base.files import UMASK

METRICS, PROGRESS, PREDICTIONS, LOG, BEST, RESUME, ENSEMBLE = (
    "metrics.json",
    "progress.json",
    "val_predictions.npz",
    "log.txt",
    "best.ckpt",
    "last.ckpt",
    "ensemble.json",
)
MIB = 2**20
LIMITS = {METRICS: 4 * MIB, PROGRESS: MIB // 16, PREDICTIONS: 256 * MIB, ENSEMBLE: 4 * MIB}
"""Largest size in bytes of a file that is read as a whole."""
ROOM = GIB
"""Bytes of the disk that a copied checkpoint leaves free."""
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EXCHANGED = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EPERM, errno.EACCES, errno.EWOULDBLOCK)
"""Errors that mean that something else than the run's log has its name."""
_TRIES = 20
"""How often a name is tried that is exchanged again and again."""
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# -- opening


@contextmanager
def _folder(run_dir: Path, name: str) -> Iterator[tuple[Folder, str]]:
    """The open folder of a file, and the file's name in it. `name` may be a path in the run directory."""
    with folders.opened(run_dir, 2) as folder:
        *inner, name = name.split("/")
        opened: list[int] = []
        try:
            for each in inner:
                opened.append(folders.inside(folder, each))
                folder = Folder(opened[-1], folder.path / each, os.fstat(opened[-1]).st_uid)
            yield folder, name
        finally:
            for descriptor in opened:
                os.close(descriptor)


@contextmanager
def _typed(run_dir: Path, name: str) -> Iterator[None]:
    """Raises RunFileError instead of OSError."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise RunFileError(f"{run_dir / name}: {error.strerror or error}", missing) from None


def open_file(run_dir: Path, name: str, limit: int | None = None) -> BufferedReader:
    """Open a file in the run directory. Raises RunFileError; `limit` is its largest size in bytes."""
    with _typed(run_dir, name), _folder(run_dir, name) as (folder, last):
        return os.fdopen(_opened(folder, last, os.O_RDONLY, limit), "rb")


def _opened(folder: Folder, name: str, flags: int, limit: int | None = None) -> int:
    """Raises OSError."""
    _check(folder, name, os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False), limit)  # opens no device
    descriptor = os.open(name, flags | _FLAGS, dir_fd=folder.descriptor)
    try:
        _check(folder, name, os.fstat(descriptor), limit)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(folder: Folder, name: str, found: os.stat_result, limit: int | None) -> None:
    why = ""
    if not stat.S_ISREG(found.st_mode):
        why = f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no regular file')}"
    elif limit is not None and found.st_size > limit:
        why = f"has {show_size(found.st_size)}; the limit is {show_size(limit)}"
    elif os.geteuid() == 0 and folder.owner not in (0, found.st_uid) and not found.st_mode & stat.S_IROTH:
        # A hard link to a file that only root or a third user can read.
        why = f"belongs to uid {found.st_uid}, its folder to uid {folder.owner}"
    if why:
        raise OSError(errno.EPERM, why, str(folder.path / name))


def read(run_dir: Path, name: str, limit: int) -> bytes:
    """The content of a file. Raises RunFileError."""
    with _typed(run_dir, name), open_file(run_dir, name, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise RunFileError(f"{run_dir / name}: has more than {show_size(limit)}")
    return content


def size(run_dir: Path, name: str) -> int | None:
    """Bytes of a file; None if it is missing or no regular file."""
    with suppress(OSError), _folder(run_dir, name) as (folder, last):
        found = os.stat(last, dir_fd=folder.descriptor, follow_symlinks=False)
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None


def has(run_dir: Path, name: str) -> bool:
    """Whether the run directory has this file, as a regular file."""
    return size(run_dir, name) is not None


def remove(run_dir: Path, name: str) -> None:
    """Remove a file (or link, or pipe). Raises RunFileError."""
    with _typed(run_dir, name), _folder(run_dir, name) as (folder, last):
        os.unlink(last, dir_fd=folder.descriptor)


# -- the log


def open_log(run_dir: Path) -> BufferedReader:
    """The run's log, to read it. Raises RunFileError."""
    return open_file(run_dir, LOG)


def log_end(run_dir: Path, begin: int = 0, most: int = LAST) -> str:
    """The end of the run's log: see `text.tail`. Empty if it cannot be read."""
    with suppress(RunFileError, OSError), open_log(run_dir) as file:
        return end(file, begin, most)
    return ""


def append_log(run_dir: Path) -> BinaryIO:
    """The run's log, to append to it. Anything else of its name is replaced. It belongs to the owner of the run
    directory. Raises RunFileError."""
    with _typed(run_dir, LOG), folders.opened(run_dir, 2) as folder:
        for _ in range(_TRIES):
            descriptor = _log_descriptor(folder)
            if descriptor is not None:
                return os.fdopen(descriptor, "ab", buffering=0)
        raise OSError(errno.EAGAIN, "is exchanged again and again")


def _log_descriptor(folder: Folder) -> int | None:
    try:
        descriptor = _opened(folder, LOG, os.O_WRONLY | os.O_APPEND)
        found = os.fstat(descriptor)
        if os.geteuid() != 0 or (found.st_uid == folder.owner and found.st_nlink == 1):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in _EXCHANGED:
            raise
    with suppress(FileNotFoundError):
        try:
            os.unlink(LOG, dir_fd=folder.descriptor)
        except (IsADirectoryError, PermissionError):
            aside = f"{LOG}.{os.urandom(4).hex()}"
            os.rename(LOG, aside, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _FLAGS
        descriptor = os.open(LOG, flags, 0o644, dir_fd=folder.descriptor)
    except FileExistsError:
        return None
    folders.give(descriptor, folder)
    return descriptor


def write_log(run_dir: Path, text: str) -> None:
    """Append to the run's log. Raises RunFileError."""
    with _typed(run_dir, LOG), append_log(run_dir) as log:
        log.write(text.encode(errors="replace"))


# -- copies


def copy(run_dir: Path, name: str, place: Folder, to: str) -> None:
    """Copy a file into the launcher's own open folder; nothing of that name exists there. Holes stay holes.

    Raises RunFileError, and OSError for the copy."""
    with open_file(run_dir, name) as source:
        found = os.fstat(source.fileno())
        disk = os.statvfs(place.descriptor)
        free = disk.f_bavail * disk.f_frsize - ROOM
        if min(found.st_size, found.st_blocks * 512) > free:
            raise RunFileError(
                f"{run_dir / name}: {show_size(found.st_size)} do not fit; free are {show_size(max(0, free))}"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        with os.fdopen(os.open(to, flags, 0o600, dir_fd=place.descriptor), "wb") as copied:
            for start, stop in _data(source.fileno(), found.st_size):
                source.seek(start)
                copied.seek(start)
                while start < stop and (block := source.read(min(MIB, stop - start))):
                    copied.write(block)
                    start += len(block)
            copied.flush()
            os.ftruncate(copied.fileno(), found.st_size)
            os.fchmod(copied.fileno(), 0o666 & ~UMASK)
            os.fsync(copied.fileno())


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes."""
    position = next_data(descriptor, 0, size)
    while position < size:
        try:
            stop = min(size, os.lseek(descriptor, position, os.SEEK_HOLE))
        except OSError:  # a file system that knows no holes, or a file that was cut short
            stop = size
        yield position, stop
        position = next_data(descriptor, stop, size)


def next_data(descriptor: int, position: int, size: int) -> int:
    """The first place from `position` on that is not in a hole of the file; `size` if there is none."""
    try:
        return min(size, os.lseek(descriptor, position, os.SEEK_DATA))
    except OSError as error:
        return size if error.errno == errno.ENXIO else position


def link(source: Path, name: str, run_dir: Path) -> None:
    """Put a file of the run `source` into the new run directory: as a hard link if the file system allows it, else as a
    copy. Raises RunFileError and OSError."""
    with _typed(source, name), _folder(source, name) as (of, last), folders.opened(run_dir, 2) as place:
        descriptor = _opened(of, last, os.O_RDONLY)
        try:
            with suppress(OSError):
                os.link(last, name, src_dir_fd=of.descriptor, dst_dir_fd=place.descriptor, follow_symlinks=False)
            if folders.exists(place, name):
                linked = os.stat(name, dir_fd=place.descriptor, follow_symlinks=False)
                if os.path.samestat(linked, os.fstat(descriptor)):
                    return
                os.unlink(name, dir_fd=place.descriptor)  # it was exchanged meanwhile
        finally:
            os.close(descriptor)
        copy(source, name, place, name)


# -- owners


def hand_over(run_dir: Path, user: tuple[int, int]) -> None:
    """Make the run's user the owner of the run directory, if this process is root and that user is not. Raises
    OSError.

    Gives away only what belongs to the present owner of the folder, through descriptors: a link leads nowhere, and a
    hard link to a file of another owner stays."""
    if os.geteuid() != 0 or user[0] == 0:
        return
    with folders.opened(run_dir, 2) as folder:
        if folder.owner != user[0]:
            _give_all(folder, user)


def _give_all(folder: Folder, user: tuple[int, int]) -> None:
    """The content first: from the moment that the folder is the user's its names can be exchanged."""
    with os.scandir(folder.descriptor) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        with suppress(OSError):
            descriptor = folders.inside(folder, name) if is_folder else _opened(folder, name, os.O_RDONLY)
            try:
                found = os.fstat(descriptor)
                if found.st_uid != folder.owner or (not is_folder and found.st_nlink > 1):
                    continue
                if is_folder:
                    _give_all(Folder(descriptor, folder.path / name, folder.owner), user)
                else:
                    os.fchown(descriptor, *user)
            finally:
                os.close(descriptor)
    os.fchown(folder.descriptor, *user)


# -- files that a job names


def run_of(path: Path) -> tuple[Path, str] | None:
    """The run directory that a path leads into, however deep, and the path in it; None if it is in none. The outermost
    counts: a run can make a folder that looks like a run."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  # keeps links
    runs = [parent for parent in path.parents if parent != parent.parent and folders.is_run(parent)]
    return (runs[-1], str(path.relative_to(runs[-1]))) if runs else None


def open_named(path: Path) -> BufferedReader:
    """Open a file that a job names; in a run directory it must be a regular file, and no link. Raises RunFileError."""
    within = run_of(path)
    if within is not None:
        return open_file(*within)
    with _typed(path.parent, path.name):
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC))  # noqa: SIM115
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise OSError(errno.EPERM, "is no regular file")


def is_usable(path: Path) -> bool:
    """Whether a path that a job names is a file or folder. In a run directory it must be a regular file, and no
    link: the engine would mount what the link leads to."""
    within = run_of(path)
    return has(*within) if within is not None else path.is_file() or path.is_dir()
