"""Why a run waits, has failed, was repeated, was or was not reused, and whether its score could be chance: what its
journal, its request and the leaderboard say, in sentences."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import RunError
from launcher.base.sizes import listed, show_duration
from launcher.base.text import one_line, relative
from launcher.engines import registry
from launcher.record import folders, retry
from launcher.record.find import list_runs, list_submissions
from launcher.record.journal import Status, look, read_events
from launcher.record.records import Records
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED, GOOD, UNKNOWN
from trainer.base.errors import EXIT_DATA, EXIT_USAGE

MOST_SUBMISSIONS = 200
"""So many earlier submissions are searched for an equal run, the latest first."""
_ENDS = {
    "failed": "failed",
    "out_of_device_memory": "ran out of device memory",
    "out_of_host_memory": "was killed for lack of host memory",
    "timed_out": "was stopped at its time limit",
    "cancelled": "was stopped",
    "lost": "ended for an unknown reason",
    "succeeded": "succeeded",
}


@dataclass(frozen=True)
class Answer:
    """A sentence: what it is about, when that happened (None: it holds now), and what to type next (empty: nothing)."""

    about: str
    text: str
    time: float | None = None
    next: str = ""


def answers(run_dir: Path) -> tuple[Status, list[Answer]]:
    """The run's status, and the answers, oldest first. Records the end of the run if nobody has noticed it yet."""
    unknown = registry.settle(run_dir)
    status = look(run_dir)
    if status.state == UNKNOWN:
        return status, [Answer("unknown", f"Its records cannot be used: {status.reason}.")]
    try:
        events, request = read_events(run_dir), read_request(run_dir)
    except (OSError, RunError) as error:
        return status, [Answer("unknown", f"Its records cannot be used: {error}.")]
    found = [*_history(events, run_dir)]
    if status.state not in ENDED:
        found += _waits(run_dir, status, request, unknown) if status.state == "queued" else _runs(run_dir, unknown)
    elif status.state not in GOOD:
        found += _not_repeated(run_dir, status, request, events)
    if request.kind == "train" and status.state != "reused":
        found += _not_reused(run_dir, request, events)
    if status.state in GOOD:
        found += _compared(run_dir)
    return status, found


def _history(events: Sequence[Mapping[str, Any]], run_dir: Path) -> Iterator[Answer]:
    for number, event in enumerate(events):
        state, attempt, reason, at = event["state"], event["attempt"], event["reason"], event["time"]
        because = f": {one_line(reason)}" if reason else ""
        if state == "queued":
            yield Answer("queued", "It was submitted." if number == 0 else f"It was queued again{because}.", at)
        elif state == "reused":
            source = one_line(str(event.get("source") or "an earlier run"), 300)
            what = f"It was not trained: it equals {source}, which succeeded, so that run's files are used."
            yield Answer("reused", what, at, "to train it anyway: launcher submit … --fresh")
        elif state in _ENDS:
            took = f" after {show_duration(event['seconds'])}" if event.get("seconds") else ""
            code = f" (exit code {event['exit_code']})" if event.get("exit_code") else ""
            yield Answer(state, f"Attempt {attempt} {_ENDS[state]}{took}{code}{because}.", at)
        elif state == "running":
            devices = ", ".join(map(str, event.get("devices") or ()))
            yield Answer("started", f"Attempt {attempt} started" + (f" on {devices}." if devices else "."), at)


def _waits(run_dir: Path, status: Status, request: RunRequest, unknown: str | None) -> Iterator[Answer]:
    """Why a queued run does not start."""
    at = _at(run_dir)
    try:
        driven = registry.is_driven(run_dir.parent)
    except RunError as error:
        yield Answer("waits", f"Nobody knows whether a launcher runs its submission: {error}.")
        return
    if not driven:
        yield Answer("waits", "It is queued, and no launcher is running its submission.", None, f"launcher resume {at}")
        return
    needs = {name: look(run_dir.parent / name).state for name in request.needs}
    if left := [f"{name} ({state})" for name, state in needs.items() if state not in ENDED]:
        yield Answer("waits", f"It waits for {listed(left, 4)}.", None, f"launcher status {_submission(run_dir)}")
    elif why := unknown or registry.why_waits(run_dir.parent):
        yield Answer("waits", f"It waits: {one_line(why)}.", None, "launcher top --once")
    else:
        yield Answer("waits", "It waits for its turn: other runs of the submission use the machine.")


def _runs(run_dir: Path, unknown: str | None) -> Iterator[Answer]:
    text = f"It is in progress: {one_line(unknown)}." if unknown else "It is in progress."
    yield Answer("runs", text, None, f"launcher logs -f {_at(run_dir)}")


def _not_repeated(
    run_dir: Path, status: Status, request: RunRequest, events: Sequence[Mapping[str, Any]]
) -> Iterator[Answer]:
    """Why a run that has ended without a result is not attempted again, and what helps."""
    code, at = status.figures.get("exit_code"), _at(run_dir)
    if code in retry.HOPELESS:
        wrong = {EXIT_USAGE: "its configuration is wrong", EXIT_DATA: "its data are wrong"}[code]
        text = f"It is not repeated: {wrong}, and it would fail again. Correct that, and submit the job again."
        yield Answer("not_retried", text, None, f"launcher logs {at}")
        return
    decided = retry.decide(request, events)
    if isinstance(decided, retry.NextAttempt):
        yield Answer("retried", f"By the job's retry it starts {decided.why}.", None, f"launcher resume {at}")
    elif decided:
        yield Answer("not_retried", f"It is {decided}.", None, f"launcher logs {at}")
    else:
        on = listed(list(request.retry.on)) or "nothing"
        text = f"It is not repeated by itself: retry.on of the job names {on}."
        yield Answer("not_retried", text, None, f"launcher resume {at}")


def _not_reused(run_dir: Path, request: RunRequest, events: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
    """Why no earlier run was taken in place of this one."""
    if not (request.identity and request.data):
        yield Answer("not_reused", "No earlier run could be used: what its data were is not on record.")
        return
    submitted, best = float(events[0]["time"]) if events else 0.0, 0
    words = {
        1: "{name} has its configuration, but other data.",
        2: "{name} has its configuration and data, but another version of the trainer made it.",
        3: "{name} equals it; it was submitted with --fresh, or files of that run were gone.",
    }
    found = ""
    earlier = [
        path for path in list_submissions(run_dir.resolve().parents[1])[::-1] if path.name != run_dir.parent.name
    ]
    for submission in earlier[:MOST_SUBMISSIONS]:
        with suppress(OSError), Records(submission) as records:
            for other in list_runs(submission):
                read = records.look_at_request(other.name)
                if isinstance(read, Status) or read.identity != request.identity:
                    continue
                alike = 1 + (read.data == request.data) + (read.data == request.data and read.code == request.code)
                if alike > best:
                    ended = records.look(other.name)
                    if ended.state in GOOD and ended.time < submitted:
                        best, found = alike, f"{submission.name}/{other.name}"
    if not best:
        yield Answer("not_reused", "It was not reused: no earlier run of this folder that succeeded equals it.")
        return
    more = (
        "to use such runs: launcher submit … --reuse-stale" if best == 2 else f"launcher diff {found} {_run(run_dir)}"
    )
    yield Answer("not_reused", "It was not reused: " + words[best].format(name=one_line(found, 300)), None, more)


def _compared(run_dir: Path) -> Iterator[Answer]:
    """Whether its score differs from the best one by more than chance, by leaderboard.csv."""
    rows: list[dict[str, str]] = []
    with suppress(OSError, csv.Error), folders.opened(run_dir.parent) as folder:
        text = folders.read(folder, "leaderboard.csv").decode(errors="surrogateescape")
        rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(io.StringIO(text))]
    own = next((row for row in rows if row.get("run") == run_dir.name and row.get("rank")), None)
    if own is None:
        if not rows:
            yield Answer(
                "distinguishable", "There is no leaderboard yet.", None, f"launcher collect {_submission(run_dir)}"
            )
        return
    first, ranked = one_line(rows[0].get("run", ""), 200), sum(bool(row.get("rank")) for row in rows)
    values = {key: one_line(own.get(key, ""), 40) for key in ("rank", "monitor", "score", "val_images")}
    said = f"Its rank is {values['rank']} of {ranked} by {values['monitor']}, {values['score'][:6]}"
    command = f"launcher diff {_submission_run(run_dir, first)} {_run(run_dir)}"
    if first == run_dir.name:
        yield Answer("distinguishable", f"{said}: the best.")
    elif own.get("distinguishable") == "no":
        text = (
            f"{said}. It is not distinguishable from {first}, the best: on the same validation images "
            f"({values['val_images']}) such a difference may be chance."
        )
        yield Answer("distinguishable", text, None, command)
    elif own.get("distinguishable") == "yes":
        text = f"{said}. {first} is better by more than chance on the same validation images ({values['val_images']})."
        yield Answer("distinguishable", text, None, command)
    else:
        text = f"{said}. It is not compared with {first}: there are no predictions of both for the same images."
        yield Answer("distinguishable", text, None, command)


def _run(run_dir: Path) -> str:
    return shlex.quote(f"{run_dir.parent.name}/{run_dir.name}")


def _submission_run(run_dir: Path, name: str) -> str:
    return shlex.quote(f"{run_dir.parent.name}/{name}")


def _runs_folder(run_dir: Path) -> str:
    return f"--runs {shlex.quote(relative(run_dir.resolve().parents[1]))}"


def _at(run_dir: Path) -> str:
    return f"{_run(run_dir)} {_runs_folder(run_dir)}"


def _submission(run_dir: Path) -> str:
    return f"{shlex.quote(run_dir.parent.name)} {_runs_folder(run_dir)}"
