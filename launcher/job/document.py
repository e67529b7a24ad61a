"""YAML with line numbers: the place of each value in a job file, and clear errors for its syntax."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.base import yaml_text
from launcher.base.errors import JobError
from launcher.base.yaml_text import KeyPath, YamlError
from trainer.base.brief import in_brief
from trainer.base.errors import nearest

COMMAND_LINE = "the command line"
MOST_FAULTS = 200
"""So many errors of one kind are looked for: a file can have 90,000, each with a search for the name that was meant."""


@dataclass(frozen=True)
class Document:
    """A YAML document: plain values, and the line (from 1) of every key and item by its path."""

    path: str
    content: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    """Dotted paths of values from `--set`, which have no line."""

    def place(self, path: KeyPath) -> str:
        """`file:line` of the value at `path`, or of the nearest enclosing value; `the command line` for a value of
        `--set`."""
        while path and path not in self.lines and _dotted(path) not in self.given:
            path = path[:-1]
        if _dotted(path) in self.given or not self.lines:
            return COMMAND_LINE
        return f"{self.path}:{self.lines.get(path, 1)}"


def in_order(errors: Iterable[str]) -> str:
    """Errors of a job, one per line, without duplicates: those of the command line first, then by line of the file."""
    return "\n".join(sorted(dict.fromkeys(errors), key=_line))


def _line(error: str) -> int:
    match = re.match(r"[^:]*:(\d+):", error)
    return int(match[1]) if match else 0


def names_file(word: str) -> bool:
    """Whether the first word of a command is a job file, not `key=value`."""
    with contextlib.suppress(OSError):  # a word that is too long for a file name
        return "=" not in word or Path(word).is_file()
    return False


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def read_bytes(path: Path) -> bytes:
    """The content of a job file, which may be a pipe and is read once. Raises JobError."""
    if path.is_dir():
        raise JobError(f"{path}: is a folder; give a job file in it")
    try:
        with path.open("rb") as file:
            content = file.read(yaml_text.MOST_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{path}: no such file; {_nearest_file(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise JobError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > yaml_text.MOST_BYTES:
        line = content.count(b"\n") + 1
        raise JobError(f"{path}:{line}: a job file has at most {yaml_text.MOST_BYTES // 2**20} MiB; is it a job file?")
    return content


def parse_bytes(content: bytes, name: str) -> Document:
    """Parse a YAML mapping; messages call it `name`. Raises JobError."""
    try:
        return parse(content.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        encoding = "utf16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "cp949"
        how = f"save it as UTF-8, or run: iconv -f {encoding} -t utf8 {shlex.quote(name)} > NEW"
        raise JobError(f"{name}:{line}: not text in UTF-8; {how}") from None


def _nearest_file(path: Path) -> str:
    """A hint at the most similar job file, compared by name without folder and suffix."""
    candidates = [*sorted(path.parent.glob("*.yaml")), *sorted(Path("jobs").glob("*.yaml"))]
    files = {file.stem: str(file) for file in reversed(candidates)}  # files in the same folder first
    if not files:
        beside = "no *.yaml in its folder, and " if path.parent.is_dir() else ""
        return f"{beside}no folder jobs/ here: cd to the project's checkout, or give the full path of the job file"
    close = difflib.get_close_matches(path.stem.lower(), files, n=1, cutoff=0.6)
    return f"did you mean '{files[close[0]]}'?" if close else nearest(str(path), files.values())


def parse(text: str, name: str) -> Document:
    """Parse YAML text; messages call it `name`. Raises JobError."""
    try:
        content, lines = yaml_text.read(text)
    except YamlError as error:
        raise JobError(in_order(f"{name}:{line}: {fault}" for line, fault in error.faults)) from None
    if not lines:
        raise JobError(f"{name}:1: the file is empty; a job needs at least name: and matrix: or overrides:")
    if not isinstance(content, dict):
        raise JobError(f"{name}:1: a job is a mapping of name:, matrix:, overrides: …, not {type(content).__name__}")
    return Document(name, content, lines)


def assign(document: Document, setting: str) -> Document:
    """The document with the `path=value` of a `--set` applied; the value is YAML. Raises JobError."""
    key, separator, text = setting.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise JobError(f"--set {setting}: write path=value, for instance --set resources.cpus=2")
    if len(parts) > yaml_text.DEEPEST:
        raise JobError(f"--set {in_brief(setting, 60)}: nested too deeply: more than {yaml_text.DEEPEST} levels")
    try:
        value = yaml_text.read(text)[0]
    except YamlError as error:
        raise JobError(f"--set {in_brief(setting, 200)}: {error}") from None
    content = _assigned(document.content, parts, value, setting)
    lines = {path: line for path, line in document.lines.items() if not f"{_dotted(path)}.".startswith(f"{key}.")}
    return Document(document.path, content, lines, document.given | {key})


def _assigned(content: Any, parts: list[str], value: Any, setting: str) -> Any:
    if not parts:
        return value
    # A dotted key of a mapping (training.batch_size under overrides:) is one key, not a path.
    if isinstance(content, dict) and ".".join(parts) in content:
        return {**content, ".".join(parts): value}
    head, rest = parts[0], parts[1:]
    if isinstance(content, list):
        if not re.fullmatch("[0-9]{1,9}", head) or int(head) >= len(content):
            raise JobError(f"--set {setting}: no item {head}; the list has {len(content)} items, counted from 0")
        return [_assigned(item, rest, value, setting) if i == int(head) else item for i, item in enumerate(content)]
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise JobError(f"--set {setting}: the value above '{head}' is not a mapping or list")
    if head in ("overrides", "matrix") and rest:
        inner = content.get(head) or {}
        if not isinstance(inner, dict):
            raise JobError(f"--set {setting}: '{head}' is not a mapping")
        return {**content, head: {**inner, ".".join(rest): value}}
    return {**content, head: _assigned(content.get(head), rest, value, setting)}
