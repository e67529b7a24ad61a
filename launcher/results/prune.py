"""Files that can be deleted: resume states of finished runs, incomplete submissions, leftover containers, replaced
images."""

from __future__ import annotations

import re
import shutil
import time
from functools import partial
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.engines.base import Waste
from launcher.record import folders, lease, locks, trainer_files
from launcher.record.find import BUILDING, list_runs, list_submissions
from launcher.record.journal import look
from launcher.record.states import GOOD
from launcher.record.trainer_files import RESUME
from trainer.base.errors import os_error

RESERVED = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
"""End of a submission's name. `submit` first creates an empty folder of that name."""
ABANDONED = 3600
"""A submission in creation without a new file for this many seconds counts as abandoned, if no process is creating one
in this runs folder: a clock may jump."""


def find_waste(runs_root: Path) -> tuple[list[Waste], list[str]]:
    """Everything that may be deleted, and remarks on folders that could not be checked. Deletes nothing."""
    remarks: list[str] = []
    waste = _checkpoints(runs_root, remarks) + _half_made(runs_root, remarks)
    for name in registry.ENGINES:
        waste += registry.engine(name).waste(runs_root, remarks)
    return waste, remarks


def _checkpoints(runs_root: Path, remarks: list[str]) -> list[Waste]:
    """`last.ckpt` of runs that succeeded, in submissions that no launcher is running."""
    waste = []
    for directory in list_submissions(runs_root):
        try:
            folders.refuse_unreadable(directory)
            if lease.is_driven(directory):
                continue
            for run_dir in list_runs(directory):
                size = trainer_files.size(run_dir, RESUME)
                if size is not None and look(run_dir).state in GOOD:
                    name = f"{directory.name}/{run_dir.name}/{RESUME}"
                    free = partial(trainer_files.remove, run_dir, RESUME)
                    waste.append(Waste(name, size, "the run succeeded", free))
        except (OSError, RunError) as error:  # another user's submission, or a damaged one
            remarks.append(f"{directory.name} was not checked completely: {error}")
    return waste


def _half_made(runs_root: Path, remarks: list[str]) -> list[Waste]:
    """Incomplete submissions of a `submit` that was killed."""
    waste = []
    reserved = (path for path in runs_root.glob("[!.]*") if RESERVED.search(path.name))
    candidates = sorted([*runs_root.glob(f"{BUILDING}*"), *reserved])
    try:
        if candidates and locks.is_creating(runs_root):  # asked after the listing: whoever makes a folder has the lock
            remarks.append("a submission is being created: what a killed submit has left is not looked for now")
            return []
    except OSError as error:
        remarks.append(f"what a killed submit has left is not looked for: {os_error(error)}")
        return []
    for folder in candidates:
        try:
            if time.time() - folder.stat().st_mtime < ABANDONED:
                continue
            if not folder.name.startswith(BUILDING):
                if not any(folder.iterdir()):
                    waste.append(Waste(folder.name, 0, "its submit was killed", folder.rmdir))
                continue
            size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        except OSError as error:
            remarks.append(f"{folder.name} was not checked: {error}")
            continue
        waste.append(Waste(folder.name, size, "its submit was killed", partial(shutil.rmtree, folder)))
    return waste


def free_all(waste: list[Waste]) -> list[str]:
    """Delete all of it. Returns a line with the reason for each failure."""
    failed = []
    for item in waste:
        try:
            item.free()
        except OSError as error:
            failed.append(f"{item.what}: {os_error(error)}")
        except RunError as error:  # from the engine
            failed.append(f"{item.what}: {error}")
    return failed
