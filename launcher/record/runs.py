"""Run directories: the record of every run. The journal is the truth; everything else can be rebuilt from it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from launcher.record.locks import is_locked as is_locked
from launcher.record.locks import lock_journal
from launcher.record.locks import locked as locked
from trainer.base.errors import nearest
from trainer.base.files import write_json, write_text

State = Literal[
    "queued",
    "starting",
    "running",
    "succeeded",
    "failed",
    "out_of_device_memory",
    "out_of_host_memory",
    "timed_out",
    "cancelled",
    "lost",
    "reused",
]
Kind = Literal["train", "ensemble", "predict", "analyze"]

ENDED: frozenset[State] = frozenset(get_args(State)) - {"queued", "starting", "running"}
GOOD: frozenset[State] = frozenset({"succeeded", "reused"})
# From each state, where a run may go. What ended may be queued again, as another attempt; what succeeded stays so.
TRANSITIONS: dict[State, frozenset[State]] = {
    "queued": frozenset({"starting", "cancelled", "failed", "reused"}),
    "starting": frozenset({"running", "queued", "failed", "cancelled", "lost"}),
    "running": ENDED - {"reused"},
    "succeeded": frozenset(),
    "reused": frozenset(),
    **{state: frozenset({"queued"}) for state in ENDED - GOOD},
}


class RunError(Exception):
    """A run or submission that is not there, or cannot do what was asked. The message is complete."""


class FencedError(RunError):
    """A launcher with a higher fencing number has written: this one has been taken over."""


@dataclass(frozen=True)
class Resources:
    """What one run asks for. Sizes are bytes; `None` means no limit."""

    gpus: int = 0
    gpu_memory: int | None = None
    memory: int | None = None
    cpus: float | None = None
    shm: int | None = None


@dataclass(frozen=True)
class Retry:
    """How often a run is attempted in all, after which ends, and how many seconds later (twice as many each time)."""

    attempts: int = 3
    on: tuple[State, ...] = ("out_of_device_memory",)
    backoff: float = 30.0


@dataclass(frozen=True)
class RunRequest:
    """A run, resolved: what `run.json` holds. Equal requests on equal data are the same run.

    `command` is what follows `python -m trainer`. A path below the runs folder is written
    `@runs/<submission>/<run>/file`; the engine puts the folder's place (native path or container mount) for `@runs`
    when it starts the run. A step whose members are known only later has `select` (`{"top": N}` or
    `{"runs": [globs]}`, and perhaps `submission`).
    """

    name: str
    index: int
    kind: Kind
    command: list[str]
    overrides: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    select: dict[str, Any] | None = None
    options: list[str] | None = None
    """Of a step with `select`: its words but for the members, which are chosen anew for each attempt."""
    resources: Resources = field(default_factory=Resources)
    image: str | None = None
    image_id: str | None = None
    """The image that `image` named when the run was submitted."""
    network: bool | None = None
    """None: only where W&B or weights need it."""
    fetches: str | None = None
    """timm's name of the model whose weights come from a hub."""
    memory_place: str = ""
    """Where the job asks for `resources.memory`: file and line."""
    data_dir: str | None = None
    cwd: str | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    env: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    share_gpu: bool = False
    """Whether it may be packed onto a GPU beside other runs of its submission."""
    priority: int = 0
    """The scheduler's: higher starts first."""
    identity: str = ""
    data: str = ""
    code: str = ""
    """What it trains on and with: see `reuse`."""
    configuration: str = ""
    """Of a run that holds out one of several folds: the name that all folds of its configuration share."""
    config: dict[str, Any] = field(default_factory=dict)
    """What tables show of it: model, data, training, img_size, batch_size, epochs, seed."""
    predicted_memory: int | None = None
    """Bytes on each device that the run is foreseen to need, the allowance for a CUDA context included."""


def device_need(request: RunRequest) -> int | None:
    """Bytes on each device with which the run is scheduled: the job's own cap, else the prediction; None: unknown."""
    return request.resources.gpu_memory or request.predicted_memory


def device_limit(request: RunRequest) -> int | None:
    """Bytes to which the run's allocator is capped on each device; None: not at all.

    A run that shares a GPU is held to what it was packed by, so that it takes nothing from those beside it.
    """
    shares = request.share_gpu and request.resources.gpus > 0
    if shares and not request.resources.gpu_memory and request.predicted_memory:
        from launcher.memory.predict import DRIVER

        return max(1, request.predicted_memory - DRIVER)  # the context is not the allocator's
    return request.resources.gpu_memory


@dataclass(frozen=True)
class Status:
    """The last event of a run."""

    state: State = "queued"
    attempt: int = 1
    reason: str = ""
    time: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def create(run_dir: Path, request: RunRequest) -> None:
    """A new run directory with its request and the first event of its journal.

    Not flushed to disk file by file: whoever shows it to others sees to that for all of them at once.
    """
    run_dir.mkdir(parents=True)
    event = {"time": time.time(), "state": "queued", "attempt": 1, "reason": ""}
    for name, text in (
        ("run.json", _as_json(request)),
        ("status.json", json.dumps(event, indent=2) + "\n"),
        ("events.jsonl", json.dumps(event) + "\n"),
    ):
        (run_dir / name).write_text(text, encoding="utf-8")


def write_request(run_dir: Path, request: RunRequest) -> None:
    """Replace run.json."""
    write_text(run_dir / "run.json", _as_json(request))


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _as_json(request: RunRequest) -> str:
    """A line a field: a submission of thousands would feel `dataclasses.asdict`, and json's indenting in Python."""
    fields = {**vars(request), "resources": vars(request.resources), "retry": vars(request.retry)}
    return "{\n" + ",\n".join(f'  "{name}": {_ENCODE(value)}' for name, value in fields.items()) + "\n}\n"


def read_request(run_dir: Path) -> RunRequest:
    """The request in run.json. Raises RunError where `run_dir` is no run directory."""
    try:
        content = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        content.pop("attempts", None)  # of an earlier version
        retry = {**content.get("retry", {})}
        retry["on"] = tuple(retry.get("on", Retry.on))
        return RunRequest(**{**content, "resources": Resources(**content["resources"]), "retry": Retry(**retry)})
    except FileNotFoundError:
        raise RunError(f"{run_dir}: not a run directory: there is no run.json in it") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{run_dir / 'run.json'}: not a request of this launcher: {error}") from None


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The journal, oldest first. A line that was cut short by a crash or a full disk is passed over."""
    try:
        text = (run_dir / "events.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("state") in TRANSITIONS:
            events.append(event)
    return events


def append_event(run_dir: Path, state: State, attempt: int | None = None, reason: str = "", **figures: Any) -> Status:
    """Write the next event into the journal and status.json; `attempt` None is that of the last event.

    Order in the journal counts, not the clock. Raises RunError where `TRANSITIONS` does not allow the step, or where
    a later attempt has begun or a launcher with a higher `fence` than the one given has written: another process was
    faster.
    """
    with open(run_dir / "events.jsonl", "a+b", opener=_no_link) as journal:  # Path.open has no opener
        lock_journal(journal.fileno())
        events = read_events(run_dir)
        if events and state not in TRANSITIONS[events[-1]["state"]]:
            raise RunError(f"{run_dir.name}: {events[-1]['state']} already; it cannot become {state}")
        if events and attempt is not None and attempt < events[-1]["attempt"]:
            raise FencedError(f"{run_dir.name}: attempt {attempt} is over: {events[-1]['attempt']} has begun")
        if figures.get("fence") and any(event.get("fence", 0) > figures["fence"] for event in events):
            raise FencedError(f"{run_dir.name}: another launcher has taken over; this one writes no more")
        last = events[-1]["attempt"] if events else 1
        event = {"time": time.time(), "state": state, "attempt": attempt or last, "reason": reason, **figures}
        journal.seek(0, os.SEEK_END)
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) != b"\n":
                journal.write(b"\n")  # close what a crash cut short
        journal.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        journal.flush()
        os.fsync(journal.fileno())
        with suppress(OSError):  # a full disk: the journal is the truth, and the next look puts this right
            write_json(run_dir / "status.json", event)
    return status_of(event)


def replay(events: Sequence[Mapping[str, Any]]) -> Status:
    """The status that a journal ends in. Raises RunError at the first step that `TRANSITIONS` does not allow."""
    status = Status()
    for number, event in enumerate(events, start=1):
        if (number == 1 and event["state"] != "queued") or (
            number > 1 and event["state"] not in TRANSITIONS[status.state]
        ):
            before = status.state if number > 1 else "nothing"
            raise RunError(f"line {number}: {event['state']} cannot follow {before}")
        status = status_of(dict(event))
    return status


def _no_link(path: str, flags: int) -> int:
    """The journal lies in a folder of the run's user: where this process is root, no link there may lead it astray."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def status_of(event: dict[str, Any]) -> Status:
    """A journal's event as the status that it made."""
    known = {key: event[key] for key in ("state", "attempt", "reason", "time") if key in event}
    return Status(**known, figures={key: value for key, value in event.items() if key not in known})


def read_status(run_dir: Path) -> Status:
    """The last event by the journal; status.json is put right where it says something else."""
    events = read_events(run_dir)
    if not events:
        return Status()
    try:
        shown = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        shown = None
    if shown != events[-1] and os.access(run_dir, os.W_OK):
        with suppress(OSError):
            write_json(run_dir / "status.json", events[-1])
    return status_of(events[-1])


def mark_lost(run_dir: Path, state: Literal["lost", "cancelled"] = "lost") -> bool:
    """Record as lost (or as cancelled, where it was asked to stop) a run that is under way by its journal while no
    process holds it; True if that was so."""
    status = read_status(run_dir)
    if status.state not in ("starting", "running") or status.figures.get("engine", "native") != "native":
        return False
    if status.figures.get("host", os.uname().nodename) != os.uname().nodename:
        return False  # locks of another host do not show here
    if is_locked(run_dir / "exec.lock"):
        return False
    with locked(run_dir / "exec.lock") as free:
        # Looked at again under the lock: it may have ended just now.
        if not free or read_status(run_dir).state not in ("starting", "running"):
            return False
        vanished = "its process vanished without a word (killed, or the machine went down)"
        append_event(run_dir, state, reason=vanished if state == "lost" else "stopped while it started")
        return True


def list_runs(submission_dir: Path) -> list[Path]:
    """The run directories of a submission, in the order of their index."""
    return sorted(path.parent for path in submission_dir.glob("*/run.json"))


def read_submission(submission: Path) -> dict[str, Any]:
    """submission.json. Raises RunError."""
    try:
        content: dict[str, Any] = json.loads((submission / "submission.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{submission / 'submission.json'}: cannot be read: {error}") from None
    return content


def list_submissions(runs_root: Path) -> list[Path]:
    """The submissions below `runs_root`, oldest first."""
    # One whose name begins with a dot is being made, or was when its launcher was killed.
    found = [path.parent for path in runs_root.glob("[!.]*/submission.json")]
    # By what is written once: a folder's own time changes with every file in it.
    return sorted(found, key=lambda path: ((path / "submission.json").stat().st_mtime_ns, path.name))


def find_submission(runs_root: Path, name: str | None = None) -> Path:
    """The submission called `name` (or the latest of the job so called, or the one whose name begins so); without a
    name the latest.

    Raises RunError that names the nearest.
    """
    if name and (Path(name) / "submission.json").is_file():
        return Path(name)
    found = list_submissions(runs_root)
    if not found:
        start = "start one: launcher submit jobs/quickstart.yaml"
        if not Path("jobs/quickstart.yaml").is_file():
            start = "name the runs folder by --runs DIR, or go to the project's checkout to start one"
        raise RunError(f"{runs_root}: there is no submission yet; {start}")
    if name is None:
        return max(found, key=lambda path: (path / "submission.json").stat().st_mtime_ns)
    names = [path.name for path in found]
    if name in names:
        return runs_root / name
    of_job = [each for each in names if re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?", each)]
    if of_job:
        return runs_root / of_job[-1]
    beginning = [each for each in names if each.startswith(name)]
    if len(beginning) == 1:
        return runs_root / beginning[0]
    if beginning:
        raise RunError(f"'{name}' may be any of {', '.join(beginning)}; say which")
    raise RunError(f"{runs_root}: there is no submission '{name}'; {nearest(name, names)}")


def fits(name: str, pattern: str) -> bool:
    """Whether a run's name, with or without its number, fits a glob."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.partition("-")[2], pattern)


def find_run(runs_root: Path, name: str) -> Path:
    """The run `name`: a directory, `submission/run`, or a run of the latest submission that has one by that name, its
    number or a pattern. Raises RunError."""
    if (Path(name) / "run.json").is_file():
        return Path(name)
    submission, _, run = name.rpartition("/")
    candidates = [find_submission(runs_root, submission)] if submission else list_submissions(runs_root)[::-1]
    if not candidates:
        find_submission(runs_root)
    for directory in candidates:
        paths = list_runs(directory)
        for matches in (
            [p for p in paths if p.name == run],
            [p for p in paths if p.name.partition("-")[0].lstrip("0") == run.lstrip("0") and run.isdigit()],
            [p for p in paths if p.name.partition("-")[2] == run],
            [p for p in paths if fits(p.name, run)],
        ):
            if len(matches) > 1:
                raise RunError(f"'{name}' may be any of {', '.join(p.name for p in matches)}; say which")
            if matches:
                return matches[0]
    names = [path.name for directory in candidates for path in list_runs(directory)]
    raise RunError(f"there is no run '{name}'; {nearest(run, names)}")
