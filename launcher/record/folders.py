"""Folders of submissions and runs, opened by descriptor, and the launcher's own files in them.

The code of a run is not trusted, and it can write into its run directory. So the launcher's own files of a run are in
`<submission>/.state/<run>/`, which no container can write to. All functions reach a file from a descriptor of its
folder and follow no links, so that nobody can redirect a launcher that is run by root.

The version before kept these files in the run directory. Such a run is read from there, and its files move to `.state`
at the first change.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.base.errors import RunError
from trainer.base.files import UMASK

STATE = ".state"
REQUEST, JOURNAL, STATUS, LOCK, TASK, STOP = (
    "run.json",
    "events.jsonl",
    "status.json",
    "exec.lock",
    "exec.json",
    "stop.requested",
)
"""The launcher's own files of a run."""
PASSING = (
    errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENOTCONN, errno.EAGAIN,
)  # fmt: skip
"""Errors of a file system that may answer later."""
LARGEST = 64 * 2**20
"""Largest size in bytes of a file of the launcher's own."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Folder:
    """An open folder: its descriptor, its path for messages, and the uid that the launcher's own files in it have."""

    descriptor: int
    path: Path
    owner: int


# -- folders


@contextmanager
def opened(path: Path, depth: int = 1) -> Iterator[Folder]:
    """Open a folder. Its last `depth` components are no links, except that the first of them may be a link of this user
    or root, in a folder that only they can change. Raises OSError."""
    text = os.path.abspath(path)  # noqa: PTH100  # keeps links
    names = [name for name in text.split("/") if name][-depth:]  # `Path.parents` takes longer than all the rest
    path, above = Path(text), text[: len(text) - len("/".join(names))]
    descriptor = os.open(above, FOLDER)
    try:
        for position, name in enumerate(names):
            inner = _entered(descriptor, name, path, may_be_link=position == 0)
            os.close(descriptor)
            descriptor = inner
        yield Folder(descriptor, path, os.fstat(descriptor).st_uid)
    finally:
        os.close(descriptor)


def _entered(parent: int, name: str, path: Path, may_be_link: bool) -> int:
    try:
        return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            error.filename = str(path)
            raise
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if may_be_link and stat.S_ISLNK(found.st_mode) and _trusted(found.st_uid) and _is_private(os.fstat(parent)):
        return os.open(name, FOLDER, dir_fd=parent)
    what = "a link" if stat.S_ISLNK(found.st_mode) else "not a folder"
    raise OSError(errno.ENOTDIR, f"{name} is {what}", str(path))


def _trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _is_private(folder: os.stat_result) -> bool:
    """Whether only this user and root can change the folder's entries."""
    return _trusted(folder.st_uid) and not folder.st_mode & 0o022


def inside(folder: Folder, name: str) -> int:
    """A descriptor of a folder in `folder`, which is no link. Raises OSError."""
    return _entered(folder.descriptor, name, folder.path / name, may_be_link=False)


def refuse_foreign(submission: Path) -> None:
    """Raise RunError if the submission belongs to another user and this process may not change it; root must not, since
    that user's requests and journals name commands to execute and processes to end."""
    me = os.geteuid()
    with opened(submission) as folder:
        if me not in (0, folder.owner) and not _may_change(submission):
            owner = user_name(folder.owner)
            raise RunError(
                f"{submission.name}: belongs to {owner}, and you ({user_name(me)}) may not change it; ask {owner}, or "
                f"run the command as that user: sudo -u '#{folder.owner}' launcher …"
            )
        if me == 0 and folder.owner != 0:
            raise RunError(
                f"{submission.name}: belongs to uid {folder.owner}, and root executes nothing that another user wrote; "
                f"run the command as that user: sudo -u '#{folder.owner}' launcher …"
            )


def refuse_unreadable(submission: Path) -> None:
    """Raise RunError if this user may not read the records of the submission's runs: else they would look unknown, and
    their results would be missing."""
    place = submission / STATE
    with suppress(FileNotFoundError):
        owner = submission.stat().st_uid
        if place.is_dir() and not os.access(place, os.R_OK | os.X_OK):
            raise RunError(
                f"{submission.name}: you ({user_name(os.geteuid())}) may not read the records of its runs, {place}; "
                f"ask {user_name(owner)}, or run the command as that user: sudo -u '#{owner}' launcher …"
            )


def _may_change(submission: Path) -> bool:
    """Whether this user may write to a submission and to the records of its runs."""
    return all(os.access(path, os.W_OK) for path in (submission, submission / STATE) if path.exists())


def user_name(uid: int) -> str:
    """The user's name; `uid N` if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# -- the launcher's own files of a run


def state_folder(run_dir: Path) -> Path:
    """The folder of the launcher's own files of a run. For a run of the version before: the run directory."""
    return run_dir if is_old(run_dir) else run_dir.parent / STATE / run_dir.name


def is_old(run_dir: Path) -> bool:
    """Whether the run has the layout of the version before."""
    submission, name = os.path.split(run_dir)
    return not os.path.lexists(f"{submission or '.'}/{STATE}/{name}") and os.path.lexists(f"{run_dir}/{JOURNAL}")


def why_no_directory(run_dir: Path) -> str:
    """Why the run has no directory of its own; empty if it has one. Raises OSError if the file system may answer
    later."""
    try:
        mode = os.lstat(run_dir).st_mode
    except FileNotFoundError:
        return "the run's directory is gone"
    except OSError as error:
        if error.errno in PASSING:
            raise
        return f"the run's directory: {error.strerror}"
    return "" if stat.S_ISDIR(mode) else "the run's directory is gone, and something else has its name"


def is_run(run_dir: Path) -> bool:
    """Whether this is a run directory."""
    return os.path.lexists(state_folder(run_dir) / REQUEST)


@contextmanager
def state(run_dir: Path) -> Iterator[Folder]:
    """The open folder of the launcher's own files of a run, to read them. Raises OSError."""
    if not is_old(run_dir):
        with opened(run_dir.parent / STATE / run_dir.name, 3) as folder:
            yield folder
        return
    with opened(run_dir, 2) as folder:
        owner = os.stat("..", dir_fd=folder.descriptor).st_uid
        yield Folder(folder.descriptor, folder.path, owner)


@contextmanager
def own_state(run_dir: Path) -> Iterator[Folder]:
    """The same, to change the files. Moves those of the version before. Raises OSError and RunError."""
    if is_old(run_dir):
        _move(run_dir)
    with state(run_dir) as folder:
        yield folder


def create_state(run_dir: Path, contents: Mapping[str, bytes] | None = None) -> None:
    """Create the run directory, and the folder of the launcher's own files with these files. Flushes nothing to disk.
    Raises OSError."""
    run_dir.mkdir(parents=True)
    place = run_dir.parent / STATE / run_dir.name
    try:
        place.mkdir(0o755)
    except FileNotFoundError:  # the first run
        place.parent.mkdir(0o755, exist_ok=True)
        place.mkdir(0o755)
    for name, content in (contents or {}).items():
        descriptor = os.open(f"{place}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666)
        try:
            while content:  # without a buffer: the file's object takes longer than the kernel
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)


def _move(run_dir: Path) -> None:
    """Move the launcher's files of the version before to `.state`, as a whole."""
    with state(run_dir) as old, opened(run_dir.parent) as submission:
        _check_free(old)
        contents = {name: read(old, name) for name in (REQUEST, JOURNAL, STATUS, TASK) if exists(old, name)}
        with _made(submission, STATE) as parent:
            building = f".{run_dir.name}.{os.urandom(4).hex()}"
            with _made(parent, building) as new:
                for name, content in contents.items():
                    replace(new, name, content)
                os.fsync(new.descriptor)
                try:
                    os.rename(building, run_dir.name, src_dir_fd=parent.descriptor, dst_dir_fd=parent.descriptor)
                except OSError:  # another process was faster
                    for name in contents:
                        remove(new, name)
                    os.rmdir(building, dir_fd=parent.descriptor)
        for name in (JOURNAL, LOCK, TASK, STOP):
            with suppress(OSError):
                remove(old, name)


def _check_free(old: Folder) -> None:
    """Raise RunError if a launcher of the version before executes the run."""
    try:
        descriptor = open_own(old, LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        name = old.path.name
        raise RunError(
            f"{name}: an older launcher is executing this run; repeat the command when it has ended"
        ) from None
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _made(parent: Folder, name: str) -> Iterator[Folder]:
    """Open a folder in `parent`, and create it if it is missing. It belongs to the owner of `parent`."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent.descriptor)
    descriptor = inside(parent, name)
    try:
        if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0 != parent.owner:
            os.fchown(descriptor, parent.owner, -1)
        yield Folder(descriptor, parent.path / name, parent.owner)
    finally:
        os.close(descriptor)


# -- files of the launcher's own


def open_own(folder: Folder, name: str, flags: int) -> int:
    """A descriptor of a file of the launcher's own: regular, no link, and of the folder's owner if this process is
    root. With O_CREAT in `flags` creates it if it is missing. Raises OSError."""
    create, flags = flags & os.O_CREAT, flags & ~os.O_CREAT | _SAFE
    for _ in range(10):
        try:
            descriptor = os.open(name, flags, dir_fd=folder.descriptor)
            break
        except FileNotFoundError as error:
            error.filename = str(folder.path / name)
            if not create:
                raise
            with suppress(FileExistsError):
                descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder.descriptor)
                give(descriptor, folder)
                break
        except OSError as error:
            error.filename = str(folder.path / name)
            raise
    else:
        raise OSError(errno.EAGAIN, "appears and disappears", str(folder.path / name))
    found = os.fstat(descriptor)
    why = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
    if not why and os.geteuid() == 0 and found.st_uid != folder.owner:
        why = f"belongs to uid {found.st_uid}, its folder to uid {folder.owner}"
    if why:
        os.close(descriptor)
        raise OSError(errno.EPERM, why, str(folder.path / name))
    return descriptor


def give(descriptor: int, folder: Folder) -> None:
    """Give a new file to the folder's owner, if this process is root and the owner is not."""
    if os.geteuid() == 0 and folder.owner != 0:
        with suppress(PermissionError):  # of a file system without owners
            os.fchown(descriptor, folder.owner, -1)


def read(folder: Folder, name: str) -> bytes:
    """The content of a file of the launcher's own. Raises OSError."""
    descriptor = open_own(folder, name, os.O_RDONLY)
    try:
        size = min(os.fstat(descriptor).st_size, LARGEST)
        content = os.read(descriptor, size + 1)
        while len(content) != size and (more := os.read(descriptor, 65_536)):  # it is growing
            content += more
            if len(content) > LARGEST:
                break
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(folder.path / name))
    return content


def replace(
    folder: Folder, name: str, content: bytes, durable: bool = True, check: Callable[[], object] = lambda: None
) -> None:
    """Replace a file of the launcher's own: writes another one, flushes it to disk (if `durable`), calls `check` and
    renames it. If `check` raises an error, nothing is replaced. Raises OSError."""
    temporary = f".{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder.descriptor), "wb") as file:
            file.write(content)
            file.flush()
            give(file.fileno(), folder)
            os.fchmod(file.fileno(), 0o666 & ~UMASK)
            if durable:
                os.fsync(file.fileno())
        check()
        os.rename(temporary, name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(folder.path / name), None
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder.descriptor)
        raise


def write(path: Path, content: bytes, depth: int = 1) -> None:
    """Replace a file of the launcher's own; see `replace`, and `opened` for `depth`. Raises OSError."""
    with opened(path.parent, depth) as folder:
        replace(folder, path.name, content)


def overwrite(folder: Folder, name: str, content: bytes) -> None:
    """Write a file of the launcher's own in place: much faster for thousands of files, but a crash may leave a part.
    Raises OSError."""
    descriptor = open_own(folder, name, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    """Write to disk what this host has written on the folder's file system, and nothing of others, which may not
    answer. An fsync per file would take minutes for thousands of files. Raises OSError."""
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(folder, FOLDER)
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def exists(folder: Folder, name: str) -> bool:
    """Whether the folder has an entry of this name."""
    try:
        os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except OSError:
        return False
    return True


def remove(folder: Folder, name: str) -> None:
    """Remove an entry that is no folder, if it exists. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder.descriptor)


def request_stop(run_dir: Path) -> None:
    """Ask whoever executes the run to end it. Raises OSError and RunError."""
    with own_state(run_dir) as folder:
        os.close(open_own(folder, STOP, os.O_WRONLY | os.O_CREAT))


def stop_requested(run_dir: Path) -> bool:
    """Whether `request_stop` was called and nobody has ended the run since. Raises OSError."""
    with state(run_dir) as folder:
        return exists(folder, STOP)


def clear_stop(run_dir: Path) -> None:
    """Forget `request_stop`. Raises OSError and RunError."""
    with own_state(run_dir) as folder:
        remove(folder, STOP)
