"""The Slurm engine: its offer to a job, the progress of a submission, and its checks of doctor."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.base.errors import RunError
from launcher.base.text import relative
from launcher.engines import process, registry
from launcher.engines.base import Choice, Collect, Say, UnofferedError, Want
from launcher.engines.docker import containers, data_links
from launcher.engines.slurm import advance, calls, checks, task
from launcher.engines.slurm import choice as slurm_choice
from launcher.engines.slurm.calls import SlurmError
from launcher.engines.slurm.jobs import Jobs
from launcher.engines.slurm.section import SlurmSpec
from launcher.host.checks import Check
from launcher.job.spec import Job
from launcher.record.journal import Status
from launcher.record.lease import Lease
from launcher.record.request import RunRequest


class SlurmEngine(Jobs):
    """See `QueueEngine`."""

    Section = SlurmSpec

    # -- before a submission is created

    def offer(self, want: Want) -> Choice:
        """See `Engine.offer`. Slurm is used only if the user asks for it."""
        if want.auto:
            raise UnofferedError("Slurm is used only with --engine slurm")
        return slurm_choice.offer(self, want, _section(want.job))

    def completed(self, requests: Sequence[RunRequest], job: Job, choice: Choice) -> list[RunRequest]:
        """See `Engine.completed`."""
        named = slurm_choice.named(requests, job, choice)
        return data_links.added(named) if choice.contained else named

    def check_requests(self, requests: Sequence[RunRequest], job: Job) -> None:
        """See `Engine.check_requests`. Also refuses runs whose state could not be read later."""
        slurm_choice.check(requests, job, _section(job))
        calls.check_answer()

    def checks(self, runs_root: Path) -> list[Check]:
        """See `Engine.checks`."""
        return checks.examine()

    # -- the progress of a submission

    def advance(
        self, directory: Path, say: Say, prepare: Callable[[Lease], None] | None = None, take_over: bool = False
    ) -> bool:
        """See `QueueEngine.advance`."""
        try:
            return advance.advance(self, directory, say, prepare, take_over)
        except SlurmError as error:
            resume = f"launcher resume {directory.name} --runs {shlex.quote(relative(directory.parent))}"
            raise SlurmError(
                f"{error}\nruns that Slurm has not accepted stay queued; continue with: {resume}"
            ) from None

    def come_back(self, directory: Path, say: Say, collect: Collect) -> None:
        """See `QueueEngine.come_back`."""
        advance.settle(self, directory, say, collect)

    def execute(self, run_dir: Path, attempt: int | None, ticket: str) -> int:
        """See `Engine.execute`. `ticket` is the number of the sbatch call."""
        if attempt is None:
            raise RunError("a Slurm job executes one given attempt of a run; give --attempt N")
        return task.run(run_dir, attempt, ticket)

    def host_memory(self, run_dir: Path, status: Status) -> int | None:
        """See `Engine.host_memory`."""
        if status.figures.get("container"):
            return registry.engine(containers.NAME).host_memory(run_dir, status)
        return process.host_memory(run_dir, status)


def _section(job: Job) -> SlurmSpec:
    section = job.section(SlurmEngine.name)
    assert isinstance(section, SlurmSpec)
    return section
