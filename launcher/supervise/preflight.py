"""Everything that can be known of a job before its first run starts, with all errors at once. `submit` and `plan` share
it, so that they say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.base.errors import DamagedFileError, Errors, JobError, RunError
from launcher.engines import choice, data_set, readiness, registry
from launcher.engines.base import Choice, Want
from launcher.host.machine import Machine
from launcher.job import data_folder, expansion, named_files, origins
from launcher.job.expansion import Planned
from launcher.job.spec import Job
from launcher.record import reuse, trainer_files
from launcher.record.find import cache_dir
from launcher.record.request import RunRequest
from launcher.supervise import submission

BRIEF = 15.0
"""Seconds for the images of a job that has other errors: a person with a typing error waits no longer."""
ANY = Machine("any", 1, 0)


@dataclass(frozen=True)
class Asked:
    """The options of `submit` and `plan` that the checks depend on."""

    machine: str | None
    gpus: str | None
    cpu_only: bool
    engine: str | None
    """None: `plan` without --engine."""
    data: str | None
    """The value of --data."""
    starts: bool
    """Whether the runs start then. `plan` shows runs that do not fit, and needs neither data nor weights."""
    fresh: bool = False
    stale: bool = False
    """Whether to reuse no runs, and also those of another version of the trainer."""


@dataclass
class Ready:
    """A job without errors, ready to be shown or created."""

    job: Job
    machine: Machine
    chosen: Choice | None
    planned: list[Planned]
    data_dir: str | None = None
    data_notes: list[str] = field(default_factory=list)
    """On how the engine's runs read the data folder."""
    unchecked: list[str] = field(default_factory=list)
    """Notes on data and weights."""
    completed: list[RunRequest] = field(default_factory=list)
    equal: Mapping[str, reuse.EqualRun] = field(default_factory=dict)
    serving: Mapping[str, Path] = field(default_factory=dict)
    """Earlier runs that are reused."""

    @property
    def new(self) -> list[RunRequest]:
        """The requests of the runs that will be executed."""
        return [request for request in self.completed if request.name not in self.serving]


def check(load: Callable[[], Job], asked: Asked, runs_root: Path, say: data_set.Say) -> Ready:
    """The checked job that `load` returns. Calls `say` before a long wait. Raises a LauncherError with all errors that
    do not follow from each other."""
    errors = Errors()
    job = _loaded(load, errors)
    if job is None:
        if asked.data:
            with errors.collected():
                data_folder.find_data(asked.data, ())
        errors.raise_all()
        raise AssertionError("unreachable")
    chosen, machine = _chosen(job, asked, errors)
    planned = expansion.expand_valid(job, machine or ANY, errors, asked.cpu_only or machine is None, runs_root)
    ready = Ready(job, machine or ANY, chosen, planned)
    if asked.starts:
        with errors.collected():
            lacking = expansion.unavailable(job, machine, asked.cpu_only) if machine else ()
            expansion.refuse_misfits(planned, lacking)
    with errors.collected():
        if machine is not None and machine.declared and not asked.starts:
            expansion.check_follows(job, runs_root)
        else:
            expansion.check_sources(job, runs_root)
    requests = [run.request for run in planned]
    named = [bool(request.config.get("root")) for request in requests if request.kind == "train"]
    with errors.collected():
        if asked.starts or asked.data or (machine and not machine.declared and named and all(named)):
            ready.data_dir = data_folder.find_data(asked.data, planned)
            starting = asked.starts and not errors
            if not starting:
                requests = [dataclasses.replace(request, data_dir=ready.data_dir) for request in requests]
            if chosen and ready.data_dir:
                ready.data_notes = chosen.engine.check_data(ready.data_dir, runs_root)
            if chosen and starting:
                _complete(ready, asked, chosen, runs_root.resolve())
                requests = ready.new
            wait = BRIEF if errors else None
            ready.unchecked += data_set.check(requests, runs_root, say, origins.blame(job), wait)
    with errors.collected():
        ready.unchecked += _weights(requests, asked, chosen, machine, runs_root)
    if chosen and not errors and (asked.starts or not asked.machine):
        fitting = requests if asked.starts else [run.request for run in planned if not run.why_not]
        with errors.collected():
            chosen.engine.check_requests(fitting, job)
    errors.raise_all()
    return ready


def check_again(requests: Sequence[RunRequest], submission_dir: Path, say: data_set.Say) -> None:
    """The same for runs that `resume` is about to start: their data, and the files that they name. Raises a
    LauncherError with all errors."""
    errors = Errors()
    runs_root = submission_dir.parent
    lines: dict[str, None] = {}
    for request in requests:
        new = not trainer_files.has(submission_dir / request.name, trainer_files.RESUME)
        named = [("model.weights", request.config.get("weights"))] if new else []
        named += [("training.teachers", name) for name in request.config.get("teachers") or ()]
        for key, name in named:
            path = Path(request.cwd or ".") / Path(str(name or "")).expanduser()
            if name and not str(name).startswith(named_files.RUNS):
                why = named_files.absent(path) or (
                    None if request.image else named_files.wrong(path, key == "training.teachers")
                )
                lines |= {f"{key}={name}: {why}": None} if why else {}
    if lines:
        errors.add(DamagedFileError("\n".join(lines)))
    with errors.collected():
        for note in data_set.check(requests, runs_root, say, lambda request, line: f"{request.name}: {line}"):
            say(note)
    errors.raise_all()


def _loaded(load: Callable[[], Job], errors: Errors) -> Job | None:
    """The job, or its part without errors; None if there is none."""
    try:
        return load()
    except JobError as error:
        errors.add(error)
        sound: Job | None = error.sound
        return sound


def _chosen(job: Job, asked: Asked, errors: Errors) -> tuple[Choice | None, Machine | None]:
    """The engine, if it is asked for and accepts the job; and its machine, else this host, if it can be described."""
    want = Want(job, asked.machine, asked.gpus, asked.cpu_only)
    if asked.engine:
        with errors.collected():
            chosen = choice.choose(asked.engine, want)
            return chosen, chosen.machine
    with errors.collected():
        return None, want.host()
    return None, None


def _complete(ready: Ready, asked: Asked, chosen: Choice, root: Path) -> None:
    """Fill in the requests of a job without errors, and the earlier runs that serve instead of some."""
    requests = submission.complete(ready.planned, root, ready.data_dir, chosen)
    ready.completed = chosen.engine.completed(requests, ready.job, chosen)
    ready.equal, ready.serving = reuse.split(ready.completed, root, asked.fresh, asked.stale)


def _weights(
    requests: Sequence[RunRequest], asked: Asked, chosen: Choice | None, machine: Machine | None, runs_root: Path
) -> list[str]:
    """Notes of `plan` on weights that cannot be had. Raises RunError for `submit`, and DamagedFileError."""
    if machine is None or (asked.starts and chosen is None) or (not asked.starts and machine.declared):
        return []
    trained = [request for request in requests if request.kind == "train"]
    try:
        readiness.check_weights(
            trained, cache_dir(runs_root), chosen or Choice(registry.engine(registry.BY_HAND), machine, "")
        )
    except DamagedFileError:
        raise
    except RunError as error:
        if asked.starts:
            raise
        return [f"note: submit would refuse this now: {error}"]
    return []
