"""The formats of model files, judged by a few of their bytes without torch: a wrong file is an error before a run
starts."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

SAFETENSORS = ".safetensors"
ENSEMBLE = ".json"
_ZIP = b"PK\x03\x04"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How files of torch.save begin in the format before torch 1.6: a pickled number."""
_MOST_HEADER = 2**24
"""Bytes of the largest header of a safetensors file that is judged: some hundred times that of a large model."""
_MOST_LIST = 2**26
"""Bytes of the largest list of members in a zip archive that is read."""
_END = b"PK\x05\x06"
_TAIL = 2**16 + 22
"""Bytes at the end of a zip archive that can contain the beginning of its end record."""
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself; run: git lfs pull"),
    (b"<", "an HTML or XML text: the download has failed; download it again"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"{", "a JSON text"),
)


def fault(path: Path, ensembles: bool = False) -> str | None:
    """See `fault_of`. Raises OSError."""
    with path.open("rb") as file:
        return fault_of(file, path.suffix, ensembles)


def fault_of(file: BinaryIO, suffix: str, ensembles: bool = False) -> str | None:
    """Why the file cannot have weights: it is empty, truncated, or of another format than its suffix says. None if it
    seems right: `.safetensors`, with `ensembles` an ensemble.json (`.json`), or a file of torch.save under any other
    name. Raises OSError."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return "the file is empty"
    file.seek(0)
    begin = file.read(1024)
    plain = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    if ensembles and suffix == ENSEMBLE:
        return _fault_of_ensemble(file, size)
    for mark, what in _OTHERS:
        if plain.startswith(mark):
            return f"is {what}"
    if not begin.strip(b"\0"):
        return "begins with zero bytes only: a copy was cut short; copy it again"
    if suffix == SAFETENSORS:
        if begin.startswith((_ZIP, _LEGACY)):
            return "is a file of torch.save, not of safetensors; give it the suffix .pt"
        return _fault_of_safetensors(file, size)
    if begin.startswith(_LEGACY):
        return None
    if begin.startswith(_ZIP):
        return _fault_of_zip(file, size)
    if _header(file, size) is not None:
        return f"is a file of safetensors; give it the suffix {SAFETENSORS}"
    return "is neither a file of torch.save nor of safetensors"


def _header(file: BinaryIO, size: int) -> Mapping[str, Any] | None:
    """The header of a safetensors file; None if there is none."""
    file.seek(0)
    number = file.read(8)
    length = struct.unpack("<Q", number)[0] if len(number) == 8 else 0
    if not 2 <= length <= min(_MOST_HEADER, size - 8):
        return None
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _fault_of_safetensors(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    number = file.read(9)
    length = struct.unpack("<Q", number[:8])[0] if len(number) == 9 else 0
    if number[8:] == b"{" and _MOST_HEADER < length <= size - 8:
        return None
    if number[8:] == b"{" and size - 8 < length <= _MOST_HEADER:
        return f"is truncated: its header has {length:,} bytes, the file {size:,}; copy it again"
    header = _header(file, size)
    if header is None:
        return "is not a safetensors file"
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        with suppress(TypeError, KeyError, IndexError, ValueError):
            ends.append(int(entry["data_offsets"][1]))
    if len(ends) == 1:
        return "is a safetensors file without tensors"
    whole = 8 + length + max(ends)
    if size != whole:
        what = "is truncated" if size < whole else "is longer than its header says"
        return f"{what}: {size:,} of {whole:,} bytes; copy it again"
    return None


def _fault_of_zip(file: BinaryIO, size: int) -> str | None:
    """Of a file of torch.save: a zip archive with `<name>/data.pkl`."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        return "is truncated: the end of its zip archive is missing; copy it again"
    listed = int.from_bytes(tail[place + 12 : place + 16], "little")
    if listed == 0xFFFFFFFF and tail[place - 20 : place - 16] == b"PK\x06\x07":  # zip64
        file.seek(min(size, int.from_bytes(tail[place - 12 : place - 4], "little")))
        listed = int.from_bytes(file.read(48)[40:48], "little")
    if listed > _MOST_LIST:
        return "is not a file of torch.save"
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile raises what the bytes of a damaged archive provoke
        return "is a damaged zip archive; copy it again"
    if "constants.pkl" in names:
        return "is a TorchScript archive, not a state dict"
    if "data.pkl" not in names:
        return "is a zip archive, but not of torch.save"
    return None


def _fault_of_ensemble(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    try:
        content = json.loads(file.read(2**22)) if size <= 2**22 else None
        members = content["members"] if isinstance(content, dict) else None
        named = isinstance(members, list) and members and all(isinstance(m["checkpoint"], str) for m in members)
    except (ValueError, TypeError, KeyError, RecursionError):
        named = False
    return None if named else "is not an ensemble.json of this trainer"
