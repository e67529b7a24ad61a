"""Training images from one folder per class, and perhaps those of an own validation split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from trainer.base import layout, spelling
from trainer.base.errors import DataError
from trainer.base.layout import Layout
from trainer.data.rows import Table
from trainer.images import files


def read(parts: Layout) -> tuple[Table, list[str], list[str], set[int]]:
    """The images of the class folders, all faults, the place of each image, and the classes with faults. Folders with
    one visible name are one class. Raises DataError if the folder of a split has no class folders."""
    faults: list[str] = []
    training = _by_name(parts.classes, parts, faults)
    held_out = _by_name(layout.class_folders(parts.validation), parts, faults) if parts.validation else {}
    if parts.validation is not None and not held_out:
        raise DataError(
            f"{parts.validation}: has no class folders, so it is no validation split; put one folder per class into it "
            "as in train/, or rename it if it is a class"
        )
    names = sorted(training | held_out)
    own_split = f"{parts.validation.name}/" if parts.validation is not None else ""
    table = Table([], [], [], names, names, held_out=[] if own_split else None, own_split=own_split)
    places: list[str] = []
    found = _loose(parts)
    incomplete: set[int] = set()
    for name in sorted(held_out.keys() - training.keys()):
        faults.append(f"{held_out[name][0].relative_to(parts.root)}: class '{name}' has no folder with training images")
    for folders, is_held_out in ((training, False), (held_out, True)):
        for name, its_folders in sorted(folders.items()):
            target, before = names.index(name), len(found.faults)
            _add(table, places, found, its_folders, target, parts, is_held_out)
            if len(found.faults) > before:
                incomplete.add(target)
    return Table(**{**vars(table), "notes": _notes(found, parts)}), faults + found.faults, places, incomplete


def _by_name(folders: Sequence[Path], parts: Layout, faults: list[str]) -> dict[str, list[Path]]:
    """The folders of each class by its visible name. Names that are not UTF-8 are faults."""
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        name = spelling.visible(folder.name)
        if not spelling.is_text(folder.name):
            faults.append(spelling.not_text(folder.relative_to(parts.root), folder.parent))
        elif not name:
            place = folder.parent.relative_to(parts.root)
            faults.append(f"{place}: the folder {folder.name!a} has no visible character in its name; rename it")
        else:
            by_name[name].append(folder)
    return dict(by_name)


def _add(
    table: Table,
    places: list[str],
    found: files.Found,
    folders: Sequence[Path],
    target: int,
    parts: Layout,
    is_held_out: bool,
) -> None:
    """Add the images of one class. IDs of training images are relative to the folder of the classes, those of the own
    validation split to the data folder."""
    name = table.class_names[target]
    images: dict[str, Path] = {}
    before = len(found.faults)
    for folder in folders:
        there = files.images_below(folder, parts.root)
        found.add(there)
        for below, path in there.images:
            image_id = f"{folder.parent.name}/{name}/{below}" if is_held_out else f"{name}/{below}"
            if image_id in images:
                other = images[image_id].relative_to(parts.root)
                found.faults.append(
                    f"{path.relative_to(parts.root)}: {other} has the same visible name in another Unicode form; "
                    "rename one"
                )
            images[image_id] = path
    if not images and not is_held_out and len(found.faults) == before:
        where = " and ".join(str(folder) for folder in folders)
        found.faults.append(f"{where}: the folder of class '{name}' has no image")
    for image_id, path in sorted(images.items(), key=lambda image: image[0].split("/")):
        table.ids.append(image_id)
        table.paths.append(path)
        table.targets.append(target)
        places.append(str(path.relative_to(parts.root)))
        if table.held_out is not None:
            table.held_out.append(is_held_out)


def _loose(parts: Layout) -> files.Found:
    """Files beside the class folders: they are in no class."""
    found = files.Found()
    for folder in (parts.train, parts.validation):
        for path in sorted(folder.iterdir()) if folder is not None else ():
            if not path.is_file() or layout.is_hidden(path.name) or path.name.lower() in files.OF_SYSTEMS:
                continue
            if files.is_image(path.name):
                found.elsewhere[f"{path.parent.name}/ beside its class folders"] += 1
            else:
                found.left_out[path.suffix.lower()] += 1
    return found


def _notes(found: files.Found, parts: Layout) -> list[str]:
    notes = []
    if parts.results:
        there = ", ".join(f"{folder.name}/" for folder in parts.results)
        notes.append(f"left out: {there} with results of runs, which is no class")
    if parts.unread and parts.train is not None:
        notes.append(f"left out: {layout.unread_in_words(parts.unread)}")
    words = files.left_out_in_words(found)
    return [*notes, *([words] if words else [])]
