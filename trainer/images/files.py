"""Image files of a data folder: which files are images, all those below a folder, and the file of an ID."""

from __future__ import annotations

import importlib.util
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from trainer.base import layout, spelling
from trainer.base.plural import counted

HEIC = (".heic", ".heif", ".hif") if importlib.util.find_spec("pi_heif") else ()
"""Suffixes of HEIC, if its reader is installed: there are platforms without it."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".jpe", ".jfif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".apng", ".mpo"),
    *(".dib", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".pcx"),
    *HEIC,
)
"""Suffixes of the images that are read, the usual ones first."""
NAMED = 3
"""Files that a note names."""
ADVICE = {
    ".pdf": "make an image of each page: `pdftoppm -r 200 -png FILE.pdf PAGE`",
    **dict.fromkeys((".heic", ".heif", ".hif"), "install the reader: `pip install pi-heif`"),
    **dict.fromkeys((".djvu", ".djv"), "make images of its pages: `ddjvu -format=tiff FILE.djvu FILE.tiff`"),
    **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".gz"), "unpack the archive"),
    **dict.fromkeys((".svg", ".docx", ".doc", ".hwp", ".hwpx", ".pptx", ".xlsx", ".psd"), "export it as PNG"),
    "": "give image files their suffix, such as .jpg",
}
"""What to do about a file that is no image, by suffix."""
Kind = Literal["train", "validation", "test"]
OF_SYSTEMS = frozenset(("thumbs.db", "desktop.ini"))


@dataclass
class Found:
    """The content of a folder: its images, everything that is left out, and faults."""

    images: list[tuple[str, Path]] = field(default_factory=list)
    """Name below the folder as its reader sees it, and path. In the order of the names."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of files that are no images, by suffix in lower case."""
    elsewhere: Counter[str] = field(default_factory=Counter)
    """Number of images that are left out because of their place, such as `.ipynb_checkpoints/`."""
    faults: list[str] = field(default_factory=list)
    """One message for each link that leads nowhere, folder with the name of an image, name that is not UTF-8, and
    folder that cannot be read."""

    def add(self, other: Found) -> None:
        """Count also what `other` has left out, and its faults."""
        self.left_out += other.left_out
        self.elsewhere += other.elsewhere
        self.faults += other.faults


def is_image(name: str) -> bool:
    """Whether the file name has the suffix of an image."""
    return PurePath(name).suffix.lower() in SUFFIXES


def images_below(folder: Path, root: Path) -> Found:
    """All images below `folder`, also through links. Messages name paths relative to `root`."""
    found = Found()
    _collect(folder, "", root, found, ())
    found.images.sort(key=lambda image: image[0].split("/"))
    for (name, path), (after, other) in zip(found.images, found.images[1:], strict=False):
        if name == after:
            found.faults.append(
                f"{_relative(other, root)}: another file has the same visible name ({_form(path)}, {_form(other)}); "
                "rename one"
            )
    return found


def _collect(folder: Path, prefix: str, root: Path, found: Found, above: tuple[tuple[int, int], ...]) -> None:
    try:
        own = folder.stat()
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        layout.enter(folder)
    except OSError as error:
        found.faults.append(f"{_relative(folder, root)}: the folder cannot be read: {error.strerror}")
        return
    if (own.st_dev, own.st_ino) in above:  # a link to a folder around it
        return
    for entry in entries:
        path, is_folder = Path(entry.path), layout.is_folder(entry)
        place = _relative(path, root)
        if layout.is_hidden(entry.name):
            if is_folder:
                hidden = sum(is_image(name) for _, _, names in os.walk(path) for name in names)
                found.elsewhere += Counter({f"{entry.name}/": hidden})
        elif not spelling.is_text(entry.name):
            found.faults.append(spelling.not_text(Path(place), folder))
        elif is_folder and is_image(entry.name):
            found.faults.append(f"{place}: is a folder with the name of an image; rename or remove it")
        elif is_folder:
            around = (*above, (own.st_dev, own.st_ino))
            _collect(path, f"{prefix}{spelling.visible(entry.name)}/", root, found, around)
        elif not is_image(entry.name):
            if entry.name.lower() not in OF_SYSTEMS:
                found.left_out[path.suffix.lower()] += 1
        elif layout.is_file(entry):
            found.images.append((prefix + spelling.visible(entry.name), path))
        else:
            found.faults.append(f"{place}: {_why_no_file(path)}")


def _why_no_file(path: Path) -> str:
    if path.is_symlink():
        target = spelling.escaped(str(path.readlink()))
        return f"is a link to {target}, which does not exist; copy the file, or remove the link"
    return "is a folder" if path.is_dir() else "is no regular file"


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _form(path: Path) -> str:
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, str(path))]
    return f"one in Unicode form {forms[0]}" if forms else "one with mixed forms"


def unlisted_in_words(names: Sequence[str], folder: str, tables: str) -> str:
    """Images of a folder that no table names, the first of them by name."""
    be = "is" if len(names) == 1 else "are"
    named = ", ".join(sorted(names)[:NAMED]) + ", …" * (len(names) > NAMED)
    return f"{counted(len(names), 'image')} of {folder}/, which {be} not in {tables} ({named})"


def left_out_in_words(found: Found) -> str | None:
    """One line about everything that is left out, and what to do about it. None: nothing is left out."""
    parts, advice = [], []
    if found.left_out:
        counts = sorted(found.left_out.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in counts)
        total = sum(found.left_out.values())
        parts.append(f"{total} {'file that is no image' if total == 1 else 'files that are no images'} ({named})")
        advice = list(dict.fromkeys(f"{s or 'no suffix'}: {ADVICE[s]}" for s, _ in counts if s in ADVICE))
    for place, count in sorted(found.elsewhere.items()):
        parts.append(f"{counted(count, 'image')} in {place}")
    return f"left out: {', '.join(parts)}{'; ' * bool(advice)}{'; '.join(advice)}" if parts else None


class Finder:
    """Finds the files of IDs in folders. Lists each folder once, when it is needed."""

    def __init__(self, root: Path, bases: Sequence[Path]) -> None:
        self.root = root
        self.bases = list(dict.fromkeys(bases))
        """Folders that IDs may be relative to, the first one first."""
        self._listings: dict[Path, _Listing] = {}
        self._by_name: defaultdict[str, list[Path]] | None = None
        """All images by the key of their last name, if an ID needed it."""

    def find(self, image_id: str) -> tuple[Path | None, str]:
        """The file of an ID, or None and the reason. An ID may have no suffix, another Unicode form or case of suffix
        than the file, backslashes, or a whole path of the machine where the table was made. The last name of such a
        path is enough if only one file has it, and no folder inside this one."""
        if not image_id.strip():
            return None, "the ID is empty"
        for wanted in self._spellings(image_id):
            for base in self.bases:
                files = list(dict.fromkeys(self._resolve(base, wanted)))
                if len(files) == 1:
                    return files[0], ""
                if files:
                    shown = ", ".join(_relative(file, self.root) for file in files)
                    return None, f"{len(files)} files have this name: {shown}; write the name as one of them, or rename"
        name = self._last_name(image_id)
        files = self._below(name) if name else []
        if len(files) == 1:
            if files[0].parent in self.bases:
                return files[0], ""
            # A folder that the path does not name: it can be another page with the same name.
            return None, f"the file is missing; did you mean {_relative(files[0], self._base_of(files[0]))!r}?"
        if files:
            shown = ", ".join(_relative(file, self.root) for file in files[:NAMED]) + ", …" * (len(files) > NAMED)
            return None, f"{len(files)} files have the name '{name}': {shown}; write the path of one of them"
        return None, self._why_missing(image_id)

    def _base_of(self, file: Path) -> Path:
        """The first folder of `bases` that holds the file."""
        return next(base for base in self.bases if file.is_relative_to(base))

    def _last_name(self, image_id: str) -> str:
        """The last name of the whole path on another machine. Empty for any other ID."""
        text = spelling.visible(image_id).replace("\\", "/")
        is_whole = text.startswith("/") or re.match(r"[A-Za-z]:", text) is not None
        return text.rpartition("/")[2] if is_whole and ".." not in text.split("/") else ""

    def _below(self, name: str) -> list[Path]:
        """The images anywhere below the folders of this kind with this name, in any case of the suffix."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            there = self.bases[:-1] or self.bases  # the last one is the root, which has images of other kinds
            for path in dict.fromkeys(path for base in there for _, path in images_below(base, self.root).images):
                self._by_name[spelling.file_key(path.name)].append(path)
        return self._by_name.get(spelling.file_key(name), [])

    def _spellings(self, image_id: str) -> Iterator[tuple[str, ...]]:
        """The parts of the paths that an ID can mean, the literal one first. None leads out of the folder."""
        written = [image_id]
        if spelling.is_windows_path(image_id):
            written.append(image_id.replace("\\", "/"))
        for text in written:
            path = Path(text.strip())
            if ".." in path.parts:
                continue
            if not path.is_absolute() and not re.match(r"[A-Za-z]:", text):
                yield path.parts
            names = {base.absolute().name.lower() for base in self.bases}
            inner = [place for place, part in enumerate(path.parts) if part.lower() in names]
            if inner:  # the whole path on another machine, or relative to another folder
                yield path.parts[inner[-1] + 1 :]
            if path.is_absolute() and path.is_relative_to(self.root.absolute()):
                yield path.relative_to(self.root.absolute()).parts

    def _resolve(self, folder: Path, parts: Sequence[str]) -> list[Path]:
        """The files that `parts` can mean in `folder`. An exact name is preferred."""
        if not parts:
            return []
        listing = self._listing(folder)
        if len(parts) == 1:
            return [folder / name for name in listing.files_of(parts[0])]
        exact = parts[0] in listing.folders
        for names in ([parts[0]] if exact else [], listing.folders_like(parts[0])):
            files = [file for name in names for file in self._resolve(folder / name, parts[1:])]
            if files:
                return files
        return []

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(folder)
        return self._listings[folder]

    def _why_missing(self, image_id: str) -> str:
        parts = next(self._spellings(image_id), ())
        if ".." in Path(image_id).parts:
            return "the file is missing: an ID is a path inside the folder, without '..'"
        for base in self.bases:
            path = base.joinpath(*parts) if parts else base
            if path != base and (path.is_symlink() or path.is_dir()):
                return _why_no_file(path)
        names = dict.fromkeys((image_id, image_id.replace("\\", "/").rpartition("/")[2]))  # of another machine's path
        listings = [self._listing(base) for base in self.bases]
        near = next((file for name in names for one in listings if (file := one.in_other_case(name))), None)
        return f"the file is missing{f'; did you mean {near!r}?' if near else ''}"


class _Listing:
    """Names in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self._keys: dict[str, list[str]] | None = None
        self._lower: dict[str, str] | None = None
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if layout.is_folder(entry):
                        self.folders.add(entry.name)
                    elif layout.is_file(entry):
                        self.files.add(entry.name)
        except OSError:
            return

    def files_of(self, name: str) -> list[str]:
        """The files that `name` can mean: the exact one, else those with the same visible name, else those with a
        suffix of an image after it."""
        if name in self.files or not self.files:
            return [name] if name in self.files else []
        if self._keys is None:
            self._keys = _grouped(self.files)
        key = spelling.file_key(name)
        return self._keys.get(f"\0{key}") or self._keys.get(spelling.visible(name)) or []

    def folders_like(self, name: str) -> list[str]:
        """The folders with the same visible name."""
        wanted = spelling.visible(name)
        return sorted(folder for folder in self.folders if spelling.visible(folder) == wanted)

    def in_other_case(self, name: str) -> str | None:
        """A file whose name differs only in the case of letters."""
        if not self.files:
            return None
        if self._lower is None:
            self._lower = {spelling.visible(file).casefold(): file for file in self.files if spelling.is_text(file)}
        return self._lower.get(spelling.visible(name).casefold())


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their key, after a NUL, and names of images by their visible name without suffix."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        key = spelling.file_key(name)
        groups[f"\0{key}"].append(name)
        if is_image(name):
            groups[key.rpartition(".")[0]].append(name)
    return groups


def finder(root: Path, kind: Kind = "train") -> Finder:
    """Finds images by ID: of training, validation or test. IDs may also be relative to `root`."""
    if root.is_file():
        return Finder(root.parent, [root.parent])
    try:
        parts = layout.find(root)
    except OSError:
        return Finder(root, [root])
    own = {"train": [parts.train], "validation": [parts.validation, parts.train], "test": [parts.test]}[kind]
    return Finder(root, [*(folder for folder in own if folder is not None), root])


def find_image(root: Path, image_id: str, kind: Kind = "train") -> Path | None:
    """The file of one ID. None if there is none, or several. For many IDs use one `finder`."""
    found = finder(root, kind)
    if ".." not in Path(image_id).parts and not Path(image_id).is_absolute():
        for base in found.bases:  # without a listing of the folder, which may be long
            if (base / image_id).is_file():
                return base / image_id
    return found.find(image_id)[0]
