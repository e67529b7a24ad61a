"""Live views: `status --watch`, `top` and `attach`. They only read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import EXIT_INTERRUPTED, RunError
from launcher.base.sizes import show_duration, show_size
from launcher.cli import watch
from launcher.cli.options import new_console
from launcher.engines import registry
from launcher.engines.host_memory import HostMemory
from launcher.host import usage
from launcher.host.nvml import GpuUse
from launcher.record import waiting
from launcher.record.find import list_runs
from launcher.record.journal import Status, look, status_of
from launcher.record.records import Records
from launcher.record.states import ENDED, GOOD, UNKNOWN
from trainer.base.errors import EXIT_FAILED, EXIT_OK
from trainer.base.figures import MAIN

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

EVERY = 1.0
"""Seconds between two updates."""
FOLLOW = 0.25
"""Seconds between two updates of `attach`."""
TELL = 30.0
"""Seconds between two tables if the output is not a terminal and no run has changed its state."""


def repeat(draw: Callable[[], tuple[RenderableType, bool]], seconds: float = EVERY) -> None:
    """Call `draw` every `seconds` and show its result at one place of the terminal, until `draw` reports the end."""
    from rich.live import Live

    console = new_console()
    shown, over = draw()
    with Live(shown, console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while not over:
            time.sleep(seconds)
            shown, over = draw()
            live.update(shown, refresh=True)


class Watching:
    """A submission that is being watched. Remembers the largest memory use seen of each run."""

    def __init__(self, submission: Path) -> None:
        self.submission = submission
        self.memory = HostMemory()
        self.records = Records(submission)

    def close(self) -> None:
        """Close the submission's records."""
        self.records.close()

    def look(self) -> dict[str, Any]:
        """`watch.status_json` with `host_memory_bytes` for each run, and the GPUs."""
        status = watch.status_json(self.submission, watch.SHOWN, self.records)
        for run in status["runs"]:
            run_dir = Path(run["directory"])
            run["host_memory_bytes"] = self.memory.peak(run_dir, self.records.look(run_dir.name))
        status["gpus"] = usage.gpu_uses()
        return status


def watch_submission(submission: Path, as_json: bool = False) -> int:
    """Show the submission until it has ended, or until no run is in progress and no launcher is running it. Returns the
    exit code of `follow`, or 1 if runs are left.

    If the output is not a terminal, prints a table whenever a run's state changes, and every 30 s.
    Raises RunError with `as_json`: programs call `status --json` as often as they like.
    """
    if as_json:
        raise RunError("--watch and --json cannot be combined; call `launcher status --json` repeatedly")
    with closing(Watching(submission)) as watching:

        def draw() -> tuple[RenderableType, bool]:
            shown = watching.look()
            return render(shown), _over(shown)

        if sys.stdout.isatty():
            repeat(draw)
        else:
            _print_changes(watching)
    code = exit_code(list_runs(submission))
    return EXIT_FAILED if code is None else code


def _over(status: dict[str, Any]) -> bool:
    """Whether nothing will change any more. Runs can outlive their launcher."""
    under_way = any(run["state"] in ("starting", "running") for run in status["runs"])
    return not (status["state"] == "running" or under_way)


def _print_changes(watching: Watching) -> None:
    console = new_console(width=220)
    before: object = None
    printed_at = 0.0
    while True:
        status = watching.look()
        reasons = [waiting.without_figures(run["reason"]) for run in status["runs"]]
        states = [(run["name"], run["state"], run["attempt"]) for run in status["runs"]]
        now = states, reasons, status["hidden"]
        over = _over(status)
        if over or now != before or time.monotonic() - printed_at > TELL:
            console.print(time.strftime("%H:%M:%S"))
            console.print(render(status))
            sys.stdout.flush()
            before, printed_at = now, time.monotonic()
        if over:
            return
        time.sleep(EVERY)


def render(status: dict[str, Any]) -> Table:
    """The table that `status --watch` shows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", title=watch.heading(status))
    table.title_justify = "left"
    uses = {use.label: use for use in status["gpus"]}
    for title in (
        "run",
        "state",
        "epoch",
        "images/s",
        "ETA",
        "best F1",
        "device memory",
        "host memory",
        "GPU",
        "reason",
    ):
        table.add_column(title, overflow="fold")
    for run in status["runs"]:
        progress = run["progress"]
        speed, epoch = progress.get("images_per_second"), progress.get("epoch")
        memory = progress.get("device_memory_bytes")
        devices = [_device(word, uses) for word in run["devices"]] if run["state"] == "running" else []
        table.add_row(
            run["name"],
            f"{watch.MARKS.get(run['state'], '✗')} {run['state']}"
            + (f" ({run['attempt']})" if run["attempt"] > 1 else ""),
            f"{epoch}/{progress.get('epochs', '?')}" if epoch is not None else "",
            f"{speed:.1f}" if speed is not None else "",
            show_duration(progress["eta_seconds"]) if progress.get("eta_seconds") is not None else "",
            f"{run[MAIN]:.4f}" if run[MAIN] is not None else "",
            show_size(memory) if memory else "",
            show_size(run["host_memory_bytes"]) if run["host_memory_bytes"] else "",
            ", ".join(devices),
            run["reason"],
        )
    if line := watch.others(status):
        table.add_row(line)
    counts: dict[str, int] = dict(status.get("hidden", {}))
    for run in status["runs"]:
        counts[run["state"]] = counts.get(run["state"], 0) + 1
    table.caption = ", ".join(f"{number} {state}" for state, number in counts.items())
    if status["waits"] and "queued" not in counts:
        table.caption += f"; {status['waits']}"
    table.caption_justify = "left"
    return table


def _device(word: str, uses: dict[str, GpuUse]) -> str:
    use = uses.get(word)
    return f"{word}: {use.use_percent} %" if use and use.use_percent is not None else word


def follow(submission: Path, on_event: Callable[[str, Status], None]) -> int | None:
    """Call `on_event` with the state of each run, then with every change, until the submission has ended.

    Returns the exit code of `submit`: 0 all succeeded, 1 some did not, 130 stopped. Returns None if no launcher is
    running the submission and runs are left. Raises RunError if there is no run.
    """
    with Records(submission) as records:
        return _followed(submission, on_event, records)


def _followed(submission: Path, on_event: Callable[[str, Status], None], records: Records) -> int | None:
    """See `follow`."""
    paths = records.run_dirs()
    if not paths:
        raise RunError(f"{submission.name}: it has no runs")
    seen: dict[Path, int] = {}
    last: dict[Path, Status] = {}
    in_queue = registry.queue_of(submission) is not None
    reported: str | None = None
    while True:
        began = time.thread_time()
        driven = registry.is_driven(submission)  # before the runs are read, so that the journals have its last changes
        for run_dir in paths:
            status = records.look(run_dir.name)
            if (not driven or in_queue) and status.state not in ENDED:
                registry.settle(run_dir)
                status = records.look(run_dir.name)
            if status == last.get(run_dir):
                continue
            last[run_dir] = status
            if status.state == UNKNOWN:
                on_event(run_dir.name, status)
                continue
            events: Sequence[dict[str, Any]] = ()
            with suppress(RunError, OSError):  # the next look shows the run as `unknown`
                events = records.events(run_dir.name)
            news = events[seen.get(run_dir, max(0, len(events) - 1)) :]
            seen[run_dir] = len(events)
            for event in news:
                on_event(run_dir.name, status_of(event))
        if not driven:
            return exit_code(paths)
        waits = registry.why_waits(submission)
        if waits and not waiting.same(reported, waits):
            on_event(submission.name, Status("queued", reason=waits))
        reported = waits
        time.sleep(max(FOLLOW, 20 * (time.thread_time() - began)))


def exit_code(paths: Sequence[Path]) -> int | None:
    """The exit code of a command that has followed these runs to their end: 0 all succeeded, 1 some did not or there
    are none, 130 stopped. None if some have not ended."""
    statuses = [look(path) for path in paths]
    states = {status.state for status in statuses}
    if not states <= ENDED:
        return None
    if states and states <= GOOD:
        return EXIT_OK
    return EXIT_INTERRUPTED if _was_stopped(statuses) else EXIT_FAILED


def _was_stopped(statuses: Sequence[Status]) -> bool:
    """Whether runs were stopped on request: their launcher then ended with 130. Others were cancelled because of a run
    that failed."""
    return any(status.state == "cancelled" and "because" not in status.figures for status in statuses)
