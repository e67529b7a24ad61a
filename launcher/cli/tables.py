"""What `plan` and `submit` tell of the runs: tables, JSON, remarks, and a line for each change."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from launcher.base.sizes import GIB, show_duration, show_size
from launcher.host.machine import Machine
from launcher.job.expansion import Planned
from launcher.memory import compatibility
from launcher.record.journal import Status
from launcher.record.standings import read_metrics
from launcher.record.states import GOOD
from trainer.base.figures import MAIN

if TYPE_CHECKING:
    from rich.table import Table

    from launcher.engines.docker.images import Image
    from launcher.results.prune import Waste
    from trainer.images.cache_folder import Cache

T = TypeVar("T")
SHOWN = 500
"""Rows of a plan at most: laying out thousands takes longer than planning them, and nobody reads them."""


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
            value = read_metrics(self.directory / name).get(MAIN)
            words += [f"{MAIN} {value:.4f}"] if value is not None else []
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
