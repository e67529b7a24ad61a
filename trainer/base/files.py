"""Files written whole or not at all: beside their place, flushed to disk, then moved over it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, DataError

UMASK = os.umask(0)  # it can be read only by setting it, which threads must not do at once
os.umask(UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Errors of the system name `path`, not the temporary one.
    """
    try:
        with _beside(path) as temporary:
            yield temporary
    except OSError as error:
        if str(error.filename).startswith(str(path.parent / f".{path.stem}.")):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Move a file that is complete to its place, on the same file system: on disk before it is seen there."""
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.chmod(0o666 & ~UMASK)  # what made it may have made it private; the result is as readable as any other
    temporary.replace(path)


def check_folder(folder: Path) -> None:
    """Raises ConfigError where nothing can be written into the folder for results, or it cannot be made."""
    try:
        if folder.is_dir():
            tempfile.TemporaryFile(dir=folder).close()
        else:
            _check_parent(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: uid {os.getuid()} cannot write to this folder, where results go ({error.strerror}); name "
            "another by RUN_DIR, or let that uid write to it (docker run -v makes a missing folder as root: make it "
            "before)"
        ) from None


def _check_parent(folder: Path) -> None:
    """Raises ConfigError where a folder that is not there cannot be made."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    if folder.exists() or not parent.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise ConfigError(
        f"{folder}: uid {os.getuid()} cannot make this folder ({reason}); name another by RUN_DIR or --output DIR"
    )


def data_folder(named: str | None) -> Path:
    """The data folder: `named`, $DATA_DIR, or the default `data`. Raises DataError where there is none."""
    for source, value in (("data.root", named), ("DATA_DIR", os.environ.get("DATA_DIR")), ("the default", "data")):
        if value:
            root = Path(value).expanduser()
            if not root.is_dir():
                what = "is not a folder" if root.exists() else "does not exist"
                raise DataError(
                    f"{root}: the data folder ({source}) {what}; name one by --data DIR or DATA_DIR, "
                    f"or draw one: python -m trainer sample-data {root}"
                )
            return root
    raise AssertionError("unreachable")


def check_checkpoint(path: Path) -> None:
    """Raises ConfigError where `path`, a best.ckpt, an ensemble.json or a val_predictions.npz, is no file."""
    if path.is_file():
        return
    if path.is_dir():
        raise ConfigError(f"{path}: the checkpoint is a folder; name a best.ckpt")
    if path.suffix == ".npz":
        raise ConfigError(f"{path}: there is no such file; name a val_predictions.npz or a best.ckpt")
    if path.suffix == ".json":
        raise ConfigError(f"{path}: there is no such file; name a best.ckpt or an ensemble.json")
    raise ConfigError(f"{path}: the checkpoint does not exist; name a best.ckpt")


def resume_file(resume: str | None, run_dir: Path) -> Path | None:
    """The last.ckpt that a run with this setting of `resume` in `run_dir` goes on from. Raises ConfigError where a run
    has been there that it does not go on with, or the file is missing."""
    last = run_dir / "last.ckpt"
    if resume is None:
        if last.exists() or (run_dir / "best.ckpt").exists():
            raise ConfigError(
                f"{run_dir}: a run has been here already; continue it by resume=auto, or name another folder by RUN_DIR"
            )
        return None
    if resume == "auto":
        return last if last.exists() else None
    path = Path(resume).expanduser()
    if not path.is_file():
        raise ConfigError(f"resume={resume}: there is no such file; name a last.ckpt, or say resume=auto")
    return path


def sha256(path: Path) -> str:
    """Of what the file holds, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
