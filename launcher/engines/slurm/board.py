"""Which job of Slurm executes which run: a submission's `slurm/` folder, and Slurm's state of its jobs.

Each sbatch call has a number and leaves `001.json` (the request and its job), `001.sh` (the script), `001.tasks` (one
line per task: run and attempt) and `001.out` (output outside the runs' logs). `stopped` says why no more runs may
start (`on_failure: stop`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal, get_args

from launcher.base import fields
from launcher.engines.slurm import calls, squeue
from launcher.engines.slurm.squeue import Key, SlurmJob, Snapshot, snapshot
from launcher.record import folders
from launcher.record.journal import Status
from trainer.base.files import json_text, to_bytes

FOLDER = "slurm"
STOPPED = "stopped"
Kind = Literal["runs", "after_runs", "after_steps"]
"""What a job executes: runs, a step, or the small job after the training runs or after the steps."""


@dataclass(frozen=True)
class Batch:
    """One sbatch call."""

    number: str
    kind: Kind
    words: list[str]
    runs: list[tuple[str, int]] = field(default_factory=list)
    """Run and attempt of each task; a job that is not an array has one."""
    after: list[int] = field(default_factory=list)
    """Of a small job: the jobs that it waits for."""
    job: int | None = None
    user: int | None = None
    """The uid that called sbatch; None in records of an earlier version."""

    @property
    def is_array(self) -> bool:
        return any(word.startswith("--array=") for word in self.words)


_CHECKS: dict[str, fields.Check] = {
    "number": fields.TEXT,
    "kind": fields.one_of(get_args(Kind)),
    "words": fields.TEXTS,
    "after": ((list,), lambda value: {int}.issuperset(map(type, value)), "a list of jobs"),
    "job": fields.COUNT,
    "user": fields.COUNT,
}


def read_batches(submission: Path) -> list[Batch]:
    """The sbatch calls so far, oldest first. Skips a call whose file is truncated."""
    batches = []
    for path in sorted((submission / FOLDER).glob("[0-9]*.json"), key=lambda path: (len(path.name), path.name)):
        try:
            with folders.opened(path.parent, 2) as folder:
                content = json.loads(folders.read(folder, path.name))
            content["runs"] = [(str(name), int(attempt)) for name, attempt in content["runs"]]
            if not fields.wrong(content, _CHECKS):
                batches.append(Batch(**content))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return batches


def write_batch(submission: Path, batch: Batch) -> None:
    """Replace its .json."""
    _write(submission / FOLDER / f"{batch.number}.json", json_text(dataclasses.asdict(batch), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    folders.write(path, to_bytes(text), 2)


def reserve(submission: Path) -> str:
    """A number for the next sbatch call, which no other process gets: tasks that repeat their runs do not wait for each
    other."""
    (submission / FOLDER).mkdir(exist_ok=True)
    with folders.opened(submission / FOLDER, 2) as folder:
        stems = [name.partition(".")[0] for name in os.listdir(folder.descriptor) if name.endswith(".json")]  # noqa: PTH208
        for number in count(1 + max((int(stem) for stem in stems if stem.isdigit()), default=0)):
            with suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = os.open(f"{number:03d}.json", flags, 0o644, dir_fd=folder.descriptor)
                folders.give(descriptor, folder)
                os.close(descriptor)
                return f"{number:03d}"
    raise AssertionError("numbers do not end")


def send(submission: Path, batch: Batch, script: str) -> Batch:
    """Record the batch, submit it with sbatch, and record its job. Raises SlurmError."""
    folder = submission / FOLDER
    batch = dataclasses.replace(batch, user=os.getuid())
    _write(folder / f"{batch.number}.sh", script)
    if batch.runs:
        _write(folder / f"{batch.number}.tasks", "".join(f"{name} {attempt}\n" for name, attempt in batch.runs))
    write_batch(submission, batch)
    names = (f"--job-name={job_name(submission, batch.number)}", f"--output={_literally(folder / batch.number)}.out")
    fixed = (*names, "--open-mode=append", "--export=ALL")
    job = calls.submit([*fixed, *batch.words], folder / f"{batch.number}.sh", submission)
    batch = dataclasses.replace(batch, job=job)
    write_batch(submission, batch)
    return batch


def _literally(path: Path) -> str:
    """The path with % escaped, because sbatch replaces %a and the like."""
    return str(path).replace("%", "%%")


def job_name(submission: Path, number: str) -> str:
    """The job's name in squeue."""
    return f"{submission.name}.{number}"


def write_stop_reason(submission: Path, why: str) -> None:
    """Record that no more runs of the submission may start."""
    _write(submission / FOLDER / STOPPED, f"{why}\n")


def stop_reason(submission: Path) -> str | None:
    """Why no more runs of the submission may start; None if they may."""
    try:
        with folders.opened(submission / FOLDER, 2) as folder:
            return folders.read(folder, STOPPED).decode(errors="replace").strip()
    except OSError:
        return None


def forget_stop_reason(submission: Path) -> None:
    """Runs may start again."""
    with suppress(FileNotFoundError), folders.opened(submission / FOLDER, 2) as folder:
        folders.remove(folder, STOPPED)


class Board:
    """A submission's jobs at one moment. The batches were read before Slurm's answer, so a job that Slurm does not know
    has ended. `load` makes one."""

    def __init__(self, submission: Path, batches: Sequence[Batch], snapshot: Snapshot) -> None:
        self.submission = submission
        self.batches = batches
        self.snapshot = snapshot
        self._of_run: dict[tuple[str, int], Key] = {}
        for batch in self.batches:
            for task, run in enumerate(batch.runs):
                if batch.job is not None:
                    self._of_run[run] = Key(batch.job, task if batch.is_array else None)

    def key(self, name: str, status: Status) -> Key | None:
        """The job or task that executes the run, or will execute it; None if none was submitted."""
        asked = self._of_run.get((name, status.attempt))
        told = squeue.key(str(status.figures["slurm"])) if status.figures.get("slurm") else None
        return (asked or told) if status.state == "queued" else (told or asked)

    def detail(self, key: Key) -> squeue.Detail | None:
        """Details on a job of the submission; None if Slurm does not know it. Raises SlurmError."""
        names = [job_name(self.submission, batch.number) for batch in self.batches if batch.job == key.job]
        return calls.detail(key, *([names[0], str(self.submission)] if names else []))

    def waits_or_runs(self, name: str, status: Status) -> bool:
        """Whether the run has a job that has not ended."""
        key = self.key(name, status)
        job = self.snapshot.find(key) if key else None
        return job is not None and not job.over

    def living(self, kind: Kind | None = None) -> list[Batch]:
        """The batches with a job or task that has not ended."""
        return [
            batch
            for batch in self.batches
            if batch.job is not None and kind in (None, batch.kind) and self.snapshot.living(batch.job)
        ]


def load(submission: Path) -> Board:
    """The submission's board now. Raises SlurmError if Slurm does not answer."""
    batches = read_batches(submission)
    records: list[SlurmJob] = []
    for user in dict.fromkeys(batch.user for batch in batches):
        records += calls.jobs([batch.job for batch in batches if batch.job and batch.user == user], user).jobs
    names = {batch.job: job_name(submission, batch.number) for batch in batches}
    # After a reset of Slurm's numbers another job may have one of ours. A site may change names.
    records = [
        record
        for record in records
        if record.folder == str(submission) or record.name == names.get(record.array or record.id)
    ]
    unknown = {job_name(submission, batch.number): batch for batch in batches if batch.job is None}
    for record in calls.named_jobs(list(unknown)):
        batch = unknown.get(record.name)
        if batch is not None and record.folder == str(submission):
            records.append(record)
            unknown[record.name] = dataclasses.replace(batch, job=record.array or record.id)
    recovered = {batch.number: batch for batch in unknown.values()}
    return Board(submission, [recovered.get(batch.number, batch) for batch in batches], snapshot(records))
