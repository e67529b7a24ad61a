"""What `plan` and `submit` tell of the runs: tables, JSON, remarks, and a line for each change."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher.base.sizes import GIB, show_duration, show_size
from launcher.host.machine import Machine
from launcher.job import folds
from launcher.job.expansion import Planned
from launcher.job.spec import Job
from launcher.memory import compatibility
from launcher.memory.predict import CONTEXT
from launcher.record.find import list_runs
from launcher.record.journal import Status, read_status
from launcher.record.request import device_need
from launcher.record.standings import figures
from launcher.record.states import ENDED, GOOD

if TYPE_CHECKING:
    from rich.table import Table

    from launcher.engines.docker.images import Image
    from launcher.record.reuse import Found
    from launcher.results.prune import Waste
    from trainer.images.cache_folder import Cache

T = TypeVar("T")
SHOWN = 500
"""Rows of a plan at most: laying out thousands takes longer than planning them, and nobody reads them."""


def at_once(each: Sequence[Planned], machine: Machine, limit: int | None) -> int:
    """How many training runs can be under way at the same time."""
    train = next((p for p in each if p.request.kind == "train"), None)
    if train is None:
        return 0
    first = train.request.resources
    bounds = [sum(p.request.kind == "train" for p in each), limit or 10**9]
    if first.gpus:
        packed = sum(_beside(train, gpu.memory) for gpu in machine.gpus) or len(machine.devices)
        bounds.append(packed // first.gpus)
    if first.cpus:
        bounds.append(int(machine.cpus // first.cpus))
    if first.memory:
        bounds.append(machine.memory // first.memory)
    return max(1, min(bounds))


def _beside(p: Planned, memory: int | None) -> int:
    """How many runs like this one a device of `memory` bytes takes; one where nothing is known."""
    need = device_need(p.request) if p.request.share_gpu else None
    return memory // need if need and memory else 1


def as_json(job: Job, each: Sequence[Planned], machine: Machine) -> dict[str, Any]:
    """The stable form of `plan --json`."""
    environment = compatibility.environment_of(machine.mps, len(machine.gpus), machine.memory)
    return {
        "name": job.spec.name,
        "machine": machine.describe(),
        "parallel": at_once(each, machine, job.spec.max_parallel),
        "runs": [_plain(p, environment) for p in each if p.request.kind == "train"],
        "steps": [_plain(p, environment) for p in each if p.request.kind != "train"],
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


def table(each: Sequence[Planned], machine: Machine) -> Table:
    """The runs for a terminal."""
    from rich.table import Table

    environment = compatibility.environment_of(machine.mps, len(machine.gpus), machine.memory)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("run", "left"),
        ("model", "left"),
        ("data", "left"),
        ("training", "left"),
        ("size", "right"),
        ("batch", "right"),
        ("epochs", "right"),
        ("GPUs", "right"),
        ("cores", "right"),
        ("micro", "right"),
        ("needs", "right"),
        ("manual says", "right"),
        ("fits", "left"),
    ):
        shown.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for p in each[:SHOWN]:
        config, resources = p.request.config, p.request.resources
        memory = compatibility.manual_memory(config, environment)
        shown.add_row(
            p.request.name,
            *(str(config.get(key, "")) for key in ("model", "data", "training", "img_size", "batch_size", "epochs")),
            str(resources.gpus),
            f"{resources.cpus:g}" if resources.cpus else "",
            str(p.fit.micro_batch) if p.fit else "",
            f"{p.request.predicted_memory / GIB:.1f} GiB" if p.request.predicted_memory else "",
            f"~{memory:g} GB" if memory else "",
            "✗ " + p.why_not if p.why_not else _fits(p),
        )
    if rest := each[SHOWN:]:
        misfits = sum(p.why_not is not None for p in rest)
        words = f"{misfits} of them do not fit" if misfits else "all of them fit"
        shown.add_row(f"… and {len(rest)} more, {words}; --json lists all")
    return shown


def _fits(p: Planned) -> str:
    """On which devices, where they differ."""
    found = p.fit.fits_on if p.fit else {}
    if len(set(found.values())) < 2:
        return "✓" if all(found.values()) else "✗ at this micro-batch"
    return " ".join(f"{'✓' if fits else '✗'} {device}" for device, fits in found.items())


def remarks(job: Job, each: Sequence[Planned], machine: Machine, native: bool = True) -> list[str]:
    """What a user should know before these runs start."""
    parallel = at_once(each, machine, job.spec.max_parallel)
    lines = [f"at most {parallel} at once" if parallel > 1 else "one after another"]
    if not machine.devices and any(p.request.kind == "train" for p in each):
        cores = f"{machine.cpus:g} CPU core{'s' * (machine.cpus != 1)}"
        lines.append(f"note: training on {cores} takes many times longer than on a GPU")
    unknown = any(device_need(p.request) is None for p in each if p.request.kind == "train")
    if job.spec.resources.share_gpu and (unknown or any(gpu.memory is None for gpu in machine.gpus)):
        lines.append(
            "note: resources.share_gpu: a run of unknown need, or on a GPU of unknown memory, has the GPU to itself; "
            "resources.gpu_memory says the need"
        )
    if any(p.fit and p.fit.words for p in each):
        lines.append("training.micro_batch was chosen to fit the devices' memory; the effective batch stays")
    if any(p.request.predicted_memory for p in each):
        lines.append(f"needs: foreseen, with {show_size(CONTEXT)} for the device's context and workspaces")
    lines += [f"note: {note}" for note in dict.fromkeys(note for p in each if p.fit for note in p.fit.notes)]
    if counts := folds.counts([p.request for p in each]):
        several = "folds" if len(set(counts.values())) > 1 else f"{next(iter(counts.values()))} folds"
        what = f"each of {len(counts)} configurations" if len(counts) > 1 else "one configuration"
        lines.append(f"{several} of {what}: the leaderboard joins them, and from: {{top: N}} counts configurations")
    limited = [field for field in ("memory", "shm") if any(getattr(p.request.resources, field) for p in each)]
    if limited and native:
        lines.append(
            f"note: resources.{' and resources.'.join(limited)}: native runs are scheduled by it, but not held to it"
        )
    return lines


def unset_remarks(job: Job, environment: Mapping[str, str], native: bool = True) -> list[str]:
    """The variables of the job's `env` and `secrets` that are not set, so that its runs go without them."""
    lines = []
    for field, names in (("env", job.spec.env), ("secrets", job.spec.secrets)):
        for position, name in enumerate(names):
            set_here = name in environment if field == "env" else bool(environment.get(name))
            if set_here or (native and _in_dotenv(name)):
                continue
            place = job.document.place((field, position))
            if name == "WANDB_API_KEY":
                lines.append(f"note: {place}: {field}: {name} is not set: runs do not tell W&B")
            else:
                lines.append(f"note: {place}: {field}: {name} is not set here; export it, or the runs go without")
    return lines


def _in_dotenv(name: str) -> bool:
    """Whether .env names the variable: native runs read it by themselves."""
    try:
        text = Path(".env").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"^\s*(export\s+)?{re.escape(name)}\s*=\s*\S", text, re.M) is not None


def reuse_remarks(equal: Mapping[str, Found], serving: Mapping[str, Path]) -> list[str]:
    """Which runs are reused, and which could be."""
    lines = []
    if serving:
        sources = ", ".join(sorted({source.parent.name for source in serving.values()}))
        lines.append(f"reused: {len(serving)} runs that equal runs of {sources} (--fresh trains them anew)")
    if passed := [name for name in equal if name not in serving]:
        lines.append(
            f"trained anew: {len(passed)} runs that equal earlier ones by another version of the trainer "
            "(--reuse-stale takes those as they are)"
        )
    return lines


def resume_line(directory: Path, again: Sequence[str]) -> str:
    """What `resume` finds to do, where it has queued the runs `again`."""
    if again:
        return f"goes on; {len(again)} runs queued again: {', '.join(again)}"
    states = [read_status(run_dir).state for run_dir in list_runs(directory)]
    if set(states) <= GOOD:
        return f"all {len(states)} runs are finished; nothing is left to do"
    if set(states) <= ENDED:
        bad = sum(state not in GOOD for state in states)
        return f"all {len(states)} runs have ended, {bad} by a bad configuration or bad data, which is never repeated"
    return "goes on; nothing to repeat"


class Announcer:
    """Prints a line for each change of a run, with the time at which it changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started = time.monotonic()

    def event(self, name: str, status: Status) -> None:
        """Called by the supervisor."""
        if status.state == "queued" and not status.reason:
            return
        words = [f"{_clock(status.time or time.time())}  {name:40} {status.state}"]
        if status.state in GOOD:
            f1 = figures(self.directory / name).get("val_f1")
            words += [f"val_f1 {f1:.4f}"] if f1 is not None else []
            words += [f"in {show_duration(status.figures.get('seconds'))}"]
        elif status.state == "running" and status.figures.get("devices"):
            words.append("on " + ", ".join(d if d == "mps" else f"GPU {d}" for d in status.figures["devices"]))
        if status.attempt > 1:
            words.append(f"(attempt {status.attempt})")
        if status.reason:
            words.append(status.reason)
        click.echo("  ".join(words))


def _clock(moment: float) -> str:
    """Seconds since 1970 as the local time of day, with the date where that is not today's."""
    at = time.localtime(moment)
    return time.strftime("%H:%M:%S" if at[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S", at)


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What `action` returns, and how many seconds it took."""
    began = time.monotonic()
    return action(), time.monotonic() - began


def builder_output(verbose: bool) -> Callable[[str], None]:
    """Prints what a builder says: everything, or a line for each step, once, which says whether it was cached."""
    seen: set[str] = set()
    current = ""  # the step whose line is not ended yet: what the builder says next tells whether it had it

    def say(line: str) -> None:
        nonlocal current
        if verbose:
            click.echo(line)
            return
        step = re.match(r"(#\d+ |)(\[(?!internal\]).*|Step \d+/.*)", line)
        if current and not re.match(r"#\d+ sha256:", line):
            click.echo("  cached" if line in (f"{current}CACHED", " ---> Using cache") else "")
            current = ""
        if step and step[2] not in seen:
            seen.add(step[2])
            current = step[1] or "Step"
            click.echo(step[2], nl=False)
        elif not step and not re.match(
            r"(#\d+ |#\d+$|$|-+$| > \[| --->|Removing|Successfully|sha256:|failed to solve|executor failed)", line
        ):
            click.echo(line)

    return say


def image_table(found: Sequence[Image]) -> Table:
    """The trainer's images for a terminal."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("image", "variant", "size", "built (UTC)", "version", "commit", "weights", "against this checkout"):
        shown.add_column(title, overflow="fold")
    words = {True: "stale", False: "the same", None: "unknown: not built by `launcher build`"}
    for image in found:
        sha, dash, state = image.git_sha.partition("-")
        name = ", ".join(image.tags) or f"{image.name} (replaced)"
        shown.add_row(
            name, image.variant, f"{image.size / 1e9:.2f} GB", image.created.replace("T", " "), image.version,
            sha[:10] + dash + state, image.weights, words[image.stale],
        )  # fmt: skip
    return shown


def cache_table(found: Sequence[Cache]) -> Table:
    """Decoded images for a terminal."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    shown.add_column("cache", "all of them", overflow="fold")
    shown.add_column("images of", overflow="fold")
    shown.add_column("decoded", justify="right")
    shown.add_column("on disk", show_size(sum(cache.size for cache in found)), justify="right")
    shown.add_column("last used (UTC)")
    for cache in found:
        about = cache.about
        images, kept = about.get("images", "?"), about.get("kept", "?")
        part = f"{cache.decoded} of {images}" + ("" if kept == images else f", {kept} fit")
        used = time.strftime("%Y-%m-%d %H:%M", time.gmtime(cache.used)) if cache.used else "unknown"
        shown.add_row(
            cache.folder.name, str(about.get("folder") or "damaged"), part, show_size(cache.size),
            used + (", in use" if cache.in_use else ""),
        )  # fmt: skip
    return shown


def waste_table(found: Sequence[Waste]) -> Table:
    """What `prune` would free."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    shown.add_column("what", "all of it", overflow="fold")
    shown.add_column("size", show_size(sum(waste.size for waste in found)), justify="right")
    shown.add_column("why", overflow="fold")
    for waste in found:
        shown.add_row(waste.what, show_size(waste.size) if waste.size else "", waste.why)
    return shown
