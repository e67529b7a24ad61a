"""`champion/`: the best single model so far, of all submissions with the same validation split."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError, RunFileError
from launcher.host import processes
from launcher.record import folders, trainer_figures, trainer_files
from launcher.record.folders import Folder
from launcher.record.locks import locked
from launcher.record.request import read_request
from launcher.record.trainer_figures import Figures, read_metrics
from trainer.base.figures import MAIN, columns
from trainer.base.files import json_text

CHECKPOINT, INFO, HISTORY = "best_model.ckpt", "champion_info.json", "history.csv"
CURRENT, PREFIX = "current", "model-"
"""The files are in a folder `model-…`. `current` is a link to the present one, and is replaced at once: nobody sees the
files of two models together. The files' own names are links to `current/…`."""
Row = dict[str, Any]
KEPT = (*trainer_figures.ORIGIN, "img_size", "seed", "class_names")


PATIENCE = 60.0
"""Seconds to wait for another process that changes the champion."""
NO_CHAMPION = (
    "No champion yet. The best single training run (no fold, no ensemble) becomes champion when its submission ends "
    "(or run: launcher collect)."
)


def crown(
    submission: Path, best: Row | None, champion: Path, replace: bool, why_none: str, say: Callable[[str], None]
) -> str:
    """Put the checkpoint of `best`, a row of the leaderboard, into `champion` if it beats the present champion. Returns
    a line with the result. `why_none`: why there is no such row. Calls `say` before it waits for another collect."""
    if best is None:
        present = _present(champion)
        return f"{why_none}; {_stays(present)}" if present else f"{why_none}. {NO_CHAMPION}"
    champion.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    told = False
    while True:
        with locked(champion / ".lock") as mine:
            if mine:
                try:
                    return _replace(submission, best, champion, replace)
                except RunFileError as error:
                    return f"{submission.name}/{best['run']} cannot become the champion: {error}"
        if time.monotonic() > deadline:
            return f"{champion}: locked by another collect; not updated; later: launcher collect {submission.name}"
        if not told:
            told = True
            holder = processes.names_of_holders(champion / ".lock") or "another collect"
            say(f"{champion}: waiting up to {PATIENCE:g} s for {holder}")
        time.sleep(0.1)


def _present(champion: Path) -> Figures | None:
    """Figures of the model in the folder; None if there is none."""
    try:
        with folders.opened(champion) as folder:
            descriptor = _current(folder)
            if descriptor is None:  # of the version before: the files themselves
                content = folders.read(folder, INFO) if folders.exists(folder, CHECKPOINT) else b""
            else:
                try:
                    content = folders.read(Folder(descriptor, champion / CURRENT, folder.owner), INFO)
                finally:
                    os.close(descriptor)
        present = trainer_figures.parsed(content)
    except (OSError, ValueError):
        return None
    figures = trainer_figures.checked(present) if isinstance(present, dict) else {}
    run = trainer_figures.line(present.get("run")) if MAIN in figures else None
    return figures | {"run": run} if run else None


def _current(folder: Folder) -> int | None:
    """The folder of the present model, open; None if the files are in `folder` itself, or if there are none. Raises
    OSError."""
    try:
        found = os.stat(INFO, dir_fd=folder.descriptor, follow_symlinks=False)
        name = os.readlink(CURRENT, dir_fd=folder.descriptor)
    except FileNotFoundError:
        return None
    is_ours = stat.S_ISLNK(found.st_mode) and name.startswith(PREFIX) and "/" not in name
    return folders.inside(folder, name) if is_ours else None


def _stays(present: Figures, figure: str = MAIN) -> str:
    return f"the champion stays {present['run']} ({figure} {present[figure]:.4f})"


def _replace(submission: Path, best: Row, champion: Path, replace: bool) -> str:
    source = submission / best["checkpoint"]
    metrics = read_metrics(source.parent)
    place = champion / CHECKPOINT
    present = _present(champion)
    name = f"{submission.name}/{best['run']}"
    figure = best["monitor"]
    if MAIN not in metrics or figure not in metrics:
        raise RunFileError(f"{source.parent / trainer_files.METRICS}: has changed while it was read")
    if present and present.get("run") != name:
        figure = figure if figure in present and figure in metrics else MAIN
        same_split = present.get("split_fingerprint") == metrics.get("split_fingerprint")
        if not same_split and not replace:
            return (
                f"{_stays(present, figure)}: it was validated on another split, "
                f"so {name} cannot be compared with it; to replace it anyway: "
                f"launcher collect {submission.name} --replace"
            )
        worth = columns()[figure].worth
        if same_split and worth(present[figure]) >= worth(metrics[figure]):
            return _stays(present, figure)
    info = {
        "run": name,
        "collected": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{key: metrics[key] for key in (*columns(), *KEPT) if key in metrics},
        "score": best["score"],
        "monitor": best["monitor"],
        "data_folder": _data_folder(source.parent),
    }
    with folders.opened(champion) as folder:
        _publish(folder, source, json_text(info, indent=2) + "\n")
    return f"champion: {name} ({figure} {metrics[figure]:.4f}) → {place}"


def _data_folder(run_dir: Path) -> str | None:
    """The data folder of a run, if it is known: `analyze` takes its pictures from there."""
    with suppress(RunError, OSError):
        request = read_request(run_dir)
        named = request.config.get("root") or request.data_dir
        return os.path.abspath(Path(request.cwd or ".") / Path(named).expanduser()) if named else None  # noqa: PTH100  # keeps links
    return None


def _publish(folder: Folder, checkpoint: Path, info: str) -> None:
    """Put a checkpoint of a run, its history and its description into the champion's folder, all at once. Raises
    RunFileError and OSError."""
    new, new_name = _new(folder)
    has_history = trainer_files.has(checkpoint.parent, HISTORY)
    try:
        trainer_files.copy(checkpoint.parent, checkpoint.name, new, CHECKPOINT)
        if has_history:
            trainer_files.copy(checkpoint.parent, HISTORY, new, HISTORY)
        folders.replace(new, INFO, info.encode())
        os.fsync(new.descriptor)
        _keep_old_layout(folder)
        _link(folder, CURRENT, new_name)
        for name in (CHECKPOINT, INFO, *([HISTORY] if has_history else [])):
            _link(folder, name, f"{CURRENT}/{name}")
        if not has_history:
            with suppress(FileNotFoundError):
                os.unlink(HISTORY, dir_fd=folder.descriptor)
        os.fsync(folder.descriptor)
    except BaseException:
        if not _leads(folder, CURRENT, new_name):
            _remove(folder, new_name)
        raise
    finally:
        os.close(new.descriptor)
    with os.scandir(folder.descriptor) as entries:
        before = [entry.name for entry in entries if entry.name.startswith(PREFIX) and entry.name != new_name]
    for name in before:
        _remove(folder, name)


def _new(folder: Folder) -> tuple[Folder, str]:
    name = f"{PREFIX}{secrets.token_hex(4)}"
    os.mkdir(name, 0o755, dir_fd=folder.descriptor)
    return Folder(folders.inside(folder, name), folder.path / name, folder.owner), name


def _keep_old_layout(folder: Folder) -> None:
    """Put the files of the version before into a folder `model-…`, too, so that they can be replaced at once."""
    names = (CHECKPOINT, INFO)
    links = {name: f"{CURRENT}/{name}" for name in names}
    if not all(folders.exists(folder, name) for name in names) or _leads(folder, INFO, links[INFO]):
        return
    if not _leads(folder, CHECKPOINT, links[CHECKPOINT]):  # else a former call was interrupted at its end
        old, old_name = _new(folder)
        try:
            for name in names:
                os.link(name, name, src_dir_fd=folder.descriptor, dst_dir_fd=old.descriptor, follow_symlinks=False)
        finally:
            os.close(old.descriptor)
        _link(folder, CURRENT, old_name)
    for name in names:
        _link(folder, name, links[name])


def _leads(folder: Folder, name: str, target: str) -> bool:
    """Whether `name` is a link to `target`."""
    with suppress(OSError):
        return os.readlink(name, dir_fd=folder.descriptor) == target
    return False


def _link(folder: Folder, name: str, target: str) -> None:
    """Replace `name` by a link."""
    if _leads(folder, name, target):
        return
    temporary = f".{name}.{secrets.token_hex(4)}"
    os.symlink(target, temporary, dir_fd=folder.descriptor)
    os.rename(temporary, name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)


def _remove(folder: Folder, name: str) -> None:
    with suppress(OSError):
        shutil.rmtree(name, dir_fd=folder.descriptor)
