"""Notes of `plan`, `submit` and `resume` about a job's runs, beside the table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.base.sizes import listed, show_duration, show_size
from launcher.host.machine import Machine
from launcher.job import folds
from launcher.job.expansion import Planned
from launcher.job.spec import Job
from launcher.memory import compatibility
from launcher.memory.predict import CONTEXT
from launcher.record.find import list_runs
from launcher.record.journal import look
from launcher.record.request import device_need
from launcher.record.retry import HOPELESS
from launcher.record.reuse import EqualRun
from launcher.record.states import ENDED, GOOD, UNKNOWN
from trainer.base.plural import counted


def plan_as_json(job: Job, planned: Sequence[Planned], machine: Machine, parallel: int) -> dict[str, Any]:
    """The stable form of `plan --json`. `parallel`: how many training runs start together."""
    environment = compatibility.environment_of(machine.mps, len(machine.gpus), machine.memory)
    return {
        "name": job.spec.name,
        "machine": machine.describe(),
        "parallel": parallel,
        "runs": [_plain(p, environment) for p in planned if p.request.kind == "train"],
        "steps": [_plain(p, environment) for p in planned if p.request.kind != "train"],
    }


def _plain(p: Planned, environment: str) -> dict[str, Any]:
    return {
        "name": p.request.name,
        "kind": p.request.kind,
        "overrides": p.request.overrides,
        "command": p.request.command,
        "needs": p.request.needs,
        "config": p.request.config,
        "resources": vars(p.request.resources),
        "share_gpu": p.request.share_gpu,
        "priority": p.request.priority,
        "fits": p.why_not is None,
        "why_not": p.why_not,
        "manual_memory_gb": compatibility.manual_memory(p.request.config, environment),
        "predicted_memory_bytes": p.request.predicted_memory,
        "micro_batch": p.fit.micro_batch if p.fit else None,
        "fits_on": p.fit.fits_on if p.fit else {},
    }


def before_start(job: Job, planned: Sequence[Planned], machine: Machine, contained: bool = False) -> list[str]:
    """Notes to the user before these runs start."""
    lines = [f"note: {line}" for line in (*machine.lost, machine.ignored) if line]
    if not machine.devices and any(p.request.kind == "train" for p in planned):
        cores = counted(machine.cpus, "CPU core")
        lines.append(f"note: training on {cores} takes many times longer than on a GPU")
    unknown = any(device_need(p.request) is None for p in planned if p.request.kind == "train")
    if job.spec.resources.share_gpu and (unknown or any(gpu.memory is None for gpu in machine.gpus)):
        lines.append(
            "note: resources.share_gpu: a run of unknown need, or on a GPU of unknown memory, does not share the GPU; "
            "set the need with resources.gpu_memory"
        )
    if job.spec.timeout is not None and planned:
        lines.append(f"timeout: each run is stopped after {show_duration(job.spec.timeout)}")
    if any(p.fit and p.fit.words for p in planned):
        lines.append("training.micro_batch was chosen to fit the devices' memory; the effective batch stays")
    if any(p.request.predicted_memory for p in planned):
        lines.append(f"needs: predicted memory, with {show_size(CONTEXT)} for the device's context and workspaces")
    lines += [f"note: {note}" for note in dict.fromkeys(note for p in planned if p.fit for note in p.fit.notes)]
    if counts := folds.counts([p.request for p in planned]):
        several = "folds" if len(set(counts.values())) > 1 else f"{next(iter(counts.values()))} folds"
        what = f"each of {len(counts)} configurations" if len(counts) > 1 else "one configuration"
        lines.append(
            f"{several} of {what}: the leaderboard shows them as one, and from: {{top: N}} counts configurations"
        )
    lines += _small_ensembles(job, planned)
    limited = [field for field in ("memory", "shm") if any(getattr(p.request.resources, field) for p in planned)]
    if limited and not contained:
        lines.append(
            f"note: resources.{' and resources.'.join(limited)}: used to schedule native runs, but not enforced"
        )
    if contained:
        lines += _little_shared_memory(job, planned)
    return lines


def _small_ensembles(job: Job, planned: Sequence[Planned]) -> list[str]:
    """Notes on ensembles that ask for more members than the job trains."""
    members = {p.request.configuration or p.request.name for p in planned if p.request.kind == "train"}
    lines = []
    for offset, step in enumerate(job.spec.after):
        top = step.from_.top if step.from_ is not None and step.from_.submission is None else None
        if step.step == "ensemble" and top is not None and top > len(members) > 0:
            place = job.document.place(("after", offset, "from"))
            have = counted(len(members), "member")
            lines.append(f"note: {place}: after.{offset}.from.top: {top}, but the job trains {have}")
    return lines


def _little_shared_memory(job: Job, planned: Sequence[Planned]) -> list[str]:
    """The note on runs whose loader may fill more than resources.shm."""
    given = max((p.request.resources.shm or 0 for p in planned), default=0)
    short = [p.request for p in planned if p.request.kind == "train" and p.request.loader_shm > given]
    if not given or not short:
        return []
    need = max(request.loader_shm for request in short)
    return [
        f"note: {job.document.place(('resources', 'shm'))}: resources.shm: {show_size(given)}, but the image loading "
        f"processes of {len(short)} of {counted(len(planned), 'run')} may fill {show_size(need)}: remove it (auto), or "
        "lower training.num_workers"
    ]


def unset_variables(job: Job, environment: Mapping[str, str]) -> list[str]:
    """Notes on variables of the job's `env` and `secrets` that are not set, so that its runs do not get them."""
    lines = []
    off = "WANDB_API_KEY" in job.spec.secrets and not environment.get("WANDB_API_KEY")
    for field, names in (("env", job.spec.env), ("secrets", job.spec.secrets)):
        for position, name in enumerate(names):
            if name in environment if field == "env" else environment.get(name):
                continue
            if off and name.startswith("WANDB_") and name != "WANDB_API_KEY":
                continue  # without a key nothing reads it
            place = job.document.place((field, position))
            if name == "WANDB_API_KEY":
                lines.append(f"note: {place}: {field}: {name} is not set: runs do not log to W&B")
            else:
                lines.append(f"note: {place}: {field}: {name} is not set; export it if the runs need it")
    return lines


def as_root(contained: bool, refused: bool = False) -> list[str]:
    """A note if runs are processes of root, so that nothing protects the host from their code. `refused`: `--engine
    auto` has just said why containers cannot be used."""
    if contained or os.geteuid() != 0:
        return []
    fix = "launcher doctor says what containers need" if refused else "containers do: --engine docker"
    return [f"note: runs execute as root, and nothing protects this host from their code; {fix}"]


def reused_runs(equal: Mapping[str, EqualRun], serving: Mapping[str, Path]) -> list[str]:
    """Which runs are reused, and which could be reused."""
    lines = []
    if serving:
        sources, runs = ", ".join(sorted({source.parent.name for source in serving.values()})), len(serving)
        equals = f"that equal{'s' * (runs == 1)} runs of {sources}"
        lines.append(f"reused: {counted(runs, 'run')} {equals} (--fresh trains again)")
    if passed := [name for name in equal if name not in serving]:
        equals = f"that equal{'s' * (len(passed) == 1)} earlier runs of another version of the trainer"
        lines.append(f"trained again: {counted(len(passed), 'run')} {equals} (--reuse-stale reuses them)")
    return lines


def on_resume(directory: Path, again: Sequence[str], only: Collection[str] | None = None) -> str:
    """Message of `resume`, which has queued the runs `again`. `only`: the runs that it could choose from; None: all."""
    if again:
        return f"continuing; {counted(len(again), 'run')} queued again: {listed(again)}"
    status = {run_dir.name: look(run_dir) for run_dir in list_runs(directory)}
    if status and {last.state for last in status.values()} <= GOOD:
        return f"{_all(len(status))} finished; nothing to do"
    if not {last.state for last in status.values()} <= ENDED:
        return "continuing; no run is queued again"
    never = [name for name, last in status.items() if last.figures.get("exit_code") in HOPELESS]
    later = [name for name, last in status.items() if last.state not in GOOD | {UNKNOWN} and name not in never]
    done = sum(last.state in GOOD for last in status.values())
    parts = [f"nothing to do: {done} of {counted(len(status), 'run')} {'is' if len(status) == 1 else 'are'} finished"]
    if never:
        what = "configuration or data must be corrected, then submit again"
        parts.append(f"never repeated: {listed(never)} ({what})")
    if later and only is not None:
        parts.append(f"not asked for: {listed(later)} (launcher resume {directory.name})")
    return "; ".join(parts)


def _all(runs: int) -> str:
    return "the run is" if runs == 1 else f"all {runs} runs are"
