"""Atomic file writes: write a temporary file in the same folder, flush it to disk, then rename it."""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError, DataError

UMASK = os.umask(0)  # reading the umask means setting it, which is not thread-safe
os.umask(UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`. It replaces `path` after the block; after an error it is removed.

    System errors name `path`, not the temporary path.
    """
    try:
        with _beside(path) as temporary:
            yield temporary
    except OSError as error:
        is_nameless = error.filename is None and error.errno is not None  # libraries lose the name, of a full disk too
        if is_nameless or str(error.filename).startswith(str(path.parent / f".{path.stem}.")):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    import tempfile

    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Flush a complete file to disk, then move it to its place on the same file system."""
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.chmod(0o666 & ~UMASK)  # mkstemp makes private files; give it the usual mode
    temporary.replace(path)


def link_or_copy(source: Path, place: Path) -> None:
    """Put the content of `source` at `place`, atomically: as a hard link if possible, else as a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.stem}.{os.urandom(4).hex()}{place.suffix}")
    try:
        os.link(source.resolve(), temporary)
        temporary.replace(place)
        temporary.unlink(missing_ok=True)  # if both were the same file, it is still there
    except OSError:  # no hard links on this file system, or not between these folders
        import shutil

        with replacing(place) as copy:
            shutil.copyfile(source, copy)


def check_folder(folder: Path) -> None:
    """Raises ConfigError if the result folder is not writable or cannot be created."""
    try:
        if folder.is_dir():
            import tempfile

            tempfile.TemporaryFile(dir=folder).close()
        else:
            _check_parent(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: uid {os.getuid()} cannot write results to this folder ({error.strerror}); set RUN_DIR to "
            "another folder, or give this uid write permission (docker run -v creates a missing folder as root; create "
            "it before)"
        ) from None


def _check_parent(folder: Path) -> None:
    """Raises ConfigError if a missing folder cannot be created."""
    parent = next(path for path in folder.absolute().parents if path.exists())
    if folder.exists() or not parent.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise ConfigError(
        f"{folder}: uid {os.getuid()} cannot create this folder ({reason}); set RUN_DIR or --output to another folder"
    )


def data_folder(named: str | None, may_be_file: bool = False) -> Path:
    """The data folder: `named`, $DATA_DIR, or the default `data`. Raises DataError if it does not exist, or if it is a
    file and must not be one."""
    for source, value in (("data.root", named), ("DATA_DIR", os.environ.get("DATA_DIR")), ("the default", "data")):
        if value:
            root = Path(value).expanduser()
            if not (root.is_dir() or (may_be_file and root.is_file())):
                what = "is not a folder" if root.exists() else "does not exist"
                image = " or one image" if may_be_file else ""
                draw = "" if root.suffix else f", or draw sample data: python -m trainer sample-data {root}"
                raise DataError(
                    f"{root}: the data folder{image} ({source}) {what}; set it with --data DIR or DATA_DIR{draw}"
                )
            return root
    raise AssertionError("unreachable")


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises ConfigError if it is one that this user may not read, or in such a folder."""
    try:
        there = path.is_file()
        if there:
            path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: the file cannot be read: {error.strerror}") from None
    return there


def check_checkpoint(path: Path) -> None:
    """Raises ConfigError if `path` (a best.ckpt, an ensemble.json or a val_predictions.npz) is not a file, or cannot be
    read."""
    if is_file(path):
        return
    if path.is_dir():
        raise ConfigError(f"{path}: the checkpoint is a folder; give a best.ckpt")
    if path.suffix == ".npz":
        raise ConfigError(f"{path}: file not found; give a val_predictions.npz or a best.ckpt")
    if path.suffix == ".json":
        raise ConfigError(f"{path}: file not found; give a best.ckpt or an ensemble.json")
    raise ConfigError(f"{path}: checkpoint not found; give a best.ckpt")


def resume_file(resume: str | None, run_dir: Path) -> Path | None:
    """The last.ckpt that a run in `run_dir` with this `resume` continues from. Raises ConfigError if the file is
    missing, or if the folder has another run that `resume` does not continue."""
    last = run_dir / "last.ckpt"
    if resume is None:
        if last.exists() or (run_dir / "best.ckpt").exists():
            raise ConfigError(
                f"{run_dir}: this folder has a run already; continue it with resume=auto, or set RUN_DIR to another "
                "folder"
            )
        return None
    if resume == "auto":
        return last if is_file(last) else None
    path = Path(resume).expanduser()
    if not is_file(path):
        raise ConfigError(f"resume={resume}: file not found; give a last.ckpt, or use resume=auto")
    if last.exists() and not last.samefile(path):
        raise ConfigError(
            f"resume={resume}: {run_dir} has a run of its own already; continue that one with resume=auto, or set "
            "RUN_DIR to another folder"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of the file content, hexadecimal."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` with `text` in UTF-8; see `to_bytes`."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(text))


def write_csv(path: Path, text: str) -> None:
    """Replace the content of `path` with a table; see `csv_bytes`."""
    with replacing(path) as temporary:
        temporary.write_bytes(csv_bytes(text))


def csv_bytes(text: str) -> bytes:
    """A table that people open in Excel: UTF-8, with a byte order mark if it is not ASCII. Without the mark Excel shows
    Korean as other characters. Pandas, Polars and `encoding="utf-8-sig"` read both."""
    content = to_bytes(text)
    return content if content.isascii() else codecs.BOM_UTF8 + content


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` with `value` as indented JSON."""
    write_text(path, json_text(value, indent=2) + "\n")


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""Made once: a submission of thousands of runs writes hundreds of thousands of fields."""


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that UTF-8 can encode, and that is read back as the same value. Raises ValueError for NaN.

    A name of a file may be any bytes. Those that are not UTF-8 are surrogates in Python, which JSON must escape.
    """
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if type(value) is int:
        return repr(value)
    text = _ENCODE(value) if indent is None else json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def to_bytes(text: str) -> bytes:
    """UTF-8. A name's bytes that are not UTF-8 (`os.fsdecode` makes surrogates of them) are themselves again; any other
    surrogate is `?`."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")
