"""What can be thrown away and never be missed: resume states of finished runs, leftover containers, replaced images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import containers, engines, images, lease, runs, submission
from launcher.containers import EngineError, explain

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


@dataclass(frozen=True)
class Waste:
    """One thing to free. `size` in bytes; `why` says what makes it needless."""

    what: str
    size: int
    why: str
    free: Callable[[], object]


def find(runs_root: Path) -> tuple[list[Waste], list[str]]:
    """Everything that may go, and remarks on what could not be looked at. Frees nothing."""
    found = _checkpoints(runs_root)
    try:
        client = containers.connect(timeout=10)
        return found + _containers(client) + _images(client, runs_root), []
    except EngineError as error:
        return found, [f"containers and images were not looked at: {error}"]


def _checkpoints(runs_root: Path) -> list[Waste]:
    """`last.ckpt` of runs that succeeded, in submissions that nobody drives."""
    found = []
    for directory in runs.list_submissions(runs_root):
        if lease.is_driven(directory):
            continue
        for run_dir in runs.list_runs(directory):
            path = run_dir / "last.ckpt"
            if path.is_file() and runs.read_status(run_dir).state in runs.GOOD:
                name = f"{directory.name}/{run_dir.name}/last.ckpt"
                found.append(Waste(name, path.stat().st_size, "the run succeeded", path.unlink))
    return found


def _containers(client: DockerClient) -> list[Waste]:
    """Containers of runs that are over or gone, and that nobody looks after."""
    found = []
    for each in _list(client):
        run_dir = Path(each.labels[containers.DIRECTORY])
        if not (run_dir / "run.json").is_file():
            # Of another runs folder, perhaps of another host: only what has ended is nobody's.
            if each.status in ("running", "paused", "restarting"):
                continue
            why = "its run directory is gone"
        else:
            engines.settle(run_dir)
            status = runs.read_status(run_dir)
            current = str(status.attempt) == each.labels.get(containers.ATTEMPT)
            if runs.is_locked(run_dir / "exec.lock") or (current and status.state not in runs.ENDED):
                continue
            why = f"the run is {status.state}"
        found.append(Waste(f"container {each.name}", 0, why, partial(each.remove, force=True, v=True)))
    return found


def _list(client: DockerClient) -> list[Container]:
    try:
        return client.containers.list(all=True, filters={"label": containers.DIRECTORY}, ignore_removed=True)
    except Exception as error:
        raise EngineError(explain(error)) from None


def _images(client: DockerClient, runs_root: Path) -> list[Waste]:
    """Images of the trainer that a later build took the name from, but for those of unfinished submissions."""
    needed = set()
    for directory in runs.list_submissions(runs_root):
        over = all(runs.read_status(run_dir).state in runs.GOOD for run_dir in runs.list_runs(directory))
        image = submission.read(directory).get("image")
        if image and not over:
            needed.add(image["id"])
    found = []
    own = _unshared(client)
    for image in images.listed(client):
        if not image.tags and image.id not in needed:
            what = f"image {image.name} ({image.variant}, {image.created})"
            why = "a later build took its name; the size is that of layers that no other image has"
            found.append(Waste(what, own.get(image.id, 0), why, partial(client.images.remove, image.id, force=True)))
    return found


def _unshared(client: DockerClient) -> dict[str, int]:
    """Image → bytes of the layers that it alone has."""
    try:
        listed = client.df()["Images"] or []
    except Exception:  # an engine that is busy counting answers with an error; a size is no reason to fail
        return {}
    return {each["Id"]: max(0, int(each["Size"]) - max(0, int(each["SharedSize"]))) for each in listed}


def free(found: list[Waste]) -> list[str]:
    """Free all of it; returns what could not be, with the reason."""
    failed = []
    for waste in found:
        try:
            waste.free()
        except Exception as error:  # the operating system's, or the engine's
            failed.append(f"{waste.what}: {explain(error)}")
    return failed
