"""Which job of Slurm executes which run: a submission's `slurm/` folder, and Slurm's state of its jobs.

Each sbatch call has a number and leaves `001.json` (the request and its job), `001.sh` (the script), `001.tasks` (one
line per task: run and attempt) and `001.out` (output outside the runs' logs).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.engines.slurm import calls, squeue
from launcher.engines.slurm.squeue import Key, Snapshot
from launcher.record import folders
from launcher.record.journal import Status
from trainer.base.files import json_text, to_bytes

FOLDER = "slurm"
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

    @property
    def is_array(self) -> bool:
        return any(word.startswith("--array=") for word in self.words)


def read_batches(submission: Path) -> list[Batch]:
    """The sbatch calls so far, oldest first. Skips a call whose file is truncated."""
    batches = []
    for path in sorted((submission / FOLDER).glob("*.json")):
        try:
            with folders.opened(path.parent, 2) as folder:
                content = json.loads(folders.read(folder, path.name))
            content["runs"] = [(str(name), int(attempt)) for name, attempt in content["runs"]]
            batches.append(Batch(**content))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return batches


def write_batch(submission: Path, batch: Batch) -> None:
    """Replace its .json."""
    _write(submission / FOLDER / f"{batch.number}.json", json_text(dataclasses.asdict(batch), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    folders.write(path, to_bytes(text), 2)


def send(submission: Path, batch: Batch, script: str) -> Batch:
    """Record the batch, submit it with sbatch, and record its job. Raises SlurmError."""
    folder = submission / FOLDER
    folder.mkdir(exist_ok=True)
    _write(folder / f"{batch.number}.sh", script)
    if batch.runs:
        _write(folder / f"{batch.number}.tasks", "".join(f"{name} {attempt}\n" for name, attempt in batch.runs))
    write_batch(submission, batch)
    names = (f"--job-name={job_name(submission, batch.number)}", f"--output={_literally(folder / batch.number)}.out")
    job = calls.submit([*names, "--open-mode=append", *batch.words], folder / f"{batch.number}.sh", submission)
    batch = dataclasses.replace(batch, job=job)
    write_batch(submission, batch)
    return batch


def _literally(path: Path) -> str:
    """The path with % escaped, because sbatch replaces %a and the like."""
    return str(path).replace("%", "%%")


def job_name(submission: Path, number: str) -> str:
    """The job's name in squeue."""
    return f"{submission.name}.{number}"


class Board:
    """A submission's jobs at one moment. The batches were read before Slurm's answer, so a job that Slurm does not know
    has ended."""

    def __init__(self, submission: Path, batches: Sequence[Batch], snapshot: Snapshot) -> None:
        self.submission = submission
        self.snapshot = snapshot
        self.batches = [self._recovered(batch) for batch in batches]
        self._of_run: dict[tuple[str, int], Key] = {}
        for batch in self.batches:
            for task, run in enumerate(batch.runs):
                if batch.job is not None:
                    self._of_run[run] = Key(batch.job, task if batch.is_array else None)

    def _recovered(self, batch: Batch) -> Batch:
        """The batch with its job. If a launcher was killed between sbatch and its record, finds the job by its name."""
        if batch.job is not None:
            return batch
        name = job_name(self.submission, batch.number)
        here = [job for job in self.snapshot.jobs if (job.name, job.folder) == (name, str(self.submission))]
        return dataclasses.replace(batch, job=here[0].array or here[0].id) if here else batch

    def key(self, name: str, status: Status) -> Key | None:
        """The job or task that executes the run, or will execute it; None if none was submitted."""
        asked = self._of_run.get((name, status.attempt))
        told = squeue.key(str(status.figures["slurm"])) if status.figures.get("slurm") else None
        return (asked or told) if status.state == "queued" else (told or asked)

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

    def next_number(self) -> str:
        """Number of the next sbatch call."""
        return f"{max((int(batch.number) for batch in self.batches), default=0) + 1:03d}"


def load(submission: Path) -> Board:
    """The submission's board now. Raises SlurmError if Slurm does not answer."""
    batches = read_batches(submission)
    return Board(submission, batches, calls.snapshot() if batches else Snapshot())
