"""Marks on the engine of the images that submissions need, so that `prune` of another runs folder leaves them alone.

A mark is an empty volume whose labels name the image and the runs folder. The engine is the one place that all runs
folders and users of its images share.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.base.errors import RunError
from launcher.engines.docker.client import PREFIX
from launcher.record.find import list_runs, list_submissions, read_submission
from launcher.record.journal import read_status
from launcher.record.states import GOOD

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.volumes import Volume

IMAGE, RUNS = PREFIX + "image", PREFIX + "runs-folder"


def mark(client: DockerClient, submission: Path) -> None:
    """Mark the submission's image. Does nothing if it has none, or the engine refuses: then `prune` may remove a
    replaced image, and `submit` says so later."""
    with suppress(Exception):  # errors of the SDK and of its HTTP library, or of a damaged submission
        image = read_submission(submission).get("image")
        if image:
            runs_root = str(submission.parent.resolve())
            name = hashlib.sha256(os.fsencode(f"{image['id']} {runs_root}")).hexdigest()[:16]
            client.volumes.create(f"document-classifier-{name}", labels={IMAGE: image["id"], RUNS: runs_root})


def needed_in(runs_root: Path) -> set[str]:
    """Ids of the images that unfinished submissions of a runs folder need. Raises OSError and RunError."""
    needed = set()
    for directory in list_submissions(runs_root):
        try:
            over = all(read_status(run_dir).state in GOOD for run_dir in list_runs(directory))
            image = read_submission(directory).get("image")
        except (OSError, RunError) as error:
            raise RunError(f"{directory.name}: {error}") from None
        if image and not over:
            needed.add(image["id"])
    return needed


def needed_elsewhere(client: DockerClient, runs_root: Path) -> dict[str, str]:
    """Image → another runs folder that may need it: one whose unfinished submissions use it, or one that this user may
    not read. Raises the SDK's errors."""
    needed: dict[str, str] = {}
    of_folders: dict[str, set[str] | None] = {}
    for volume in _marks(client):
        image, folder = volume.attrs["Labels"][IMAGE], volume.attrs["Labels"][RUNS]
        if folder == str(runs_root.resolve()):
            continue
        if folder not in of_folders:
            of_folders[folder] = _needed(Path(folder))
        ids = of_folders[folder]
        if ids is None or image in ids:
            needed[image] = folder
    return needed


def _needed(runs_root: Path) -> set[str] | None:
    """See `needed_in`; None if it is unknown."""
    try:
        runs_root.stat()
        os.scandir(runs_root).close()
        return needed_in(runs_root)
    except FileNotFoundError:  # the folder is gone, and its submissions with it
        return set()
    except (OSError, RunError):
        return None


def forget(client: DockerClient, image: str) -> None:
    """Remove the marks of an image that has been removed."""
    for volume in _marks(client):
        if volume.attrs["Labels"][IMAGE] == image:
            with suppress(Exception):  # an empty volume harms nobody
                volume.remove()


def _marks(client: DockerClient) -> list[Volume]:
    volumes: list[Volume] = client.volumes.list(filters={"label": IMAGE})
    return [volume for volume in volumes if {IMAGE, RUNS} <= set(volume.attrs.get("Labels") or {})]
