"""Creates submissions atomically, and queues their runs again on resume."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from launcher import CHECKOUT, __version__
from launcher.base.errors import DataFolderError, FencedError, RunError, RunFileError
from launcher.engines import registry
from launcher.engines.base import Choice
from launcher.job import steps
from launcher.job.expansion import Planned
from launcher.job.spec import Job
from launcher.record import folders, locks, retry, reuse, trainer_files
from launcher.record.find import BUILDING, find_submission, own_cache, read_submission
from launcher.record.journal import OUTDATED, Status, append_event, create_run
from launcher.record.lease import Lease
from launcher.record.records import Records
from launcher.record.request import RunRequest, read_request, write_request
from launcher.record.states import ENDED, GOOD, UNKNOWN, State
from launcher.supervise import stop_request
from launcher.supervise.supervisor import Rules
from trainer.base import provenance
from trainer.base.files import write_json


def complete(planned: Sequence[Planned], runs_root: Path, data_dir: str | None, choice: Choice) -> list[RunRequest]:
    """The requests, completed by image, data and code, which are known only at submission. Raises RunError."""
    trained_code = reuse.code_of(choice.image)
    digests = reuse.DataDigests(own_cache(runs_root))
    image, image_id = (choice.image.name, choice.image.id) if choice.image else (None, None)
    cwd = str(Path.cwd())
    requests = []
    for run in planned:
        code = data = ""
        if run.request.kind == "train":
            code = trained_code
            try:
                data = _data_of(run.request, str(run.request.config.get("root") or data_dir), digests)
            except OSError as error:
                raise DataFolderError(f"{error.filename}: the data folder cannot be read: {error.strerror}") from None
        requests.append(
            dataclasses.replace(
                run.request, data_dir=data_dir, image=image, image_id=image_id, cwd=cwd, code=code, data=data
            )
        )
    return requests


def _data_of(request: RunRequest, folder: str, digests: reuse.DataDigests) -> str:
    """Digest of the run's data and of the files that it names. Raises OSError."""
    weights = request.config.get("weights")
    teachers = [Path(name).expanduser() for name in request.config.get("teachers") or ()]
    return digests.digest(Path(folder).expanduser(), Path(weights).expanduser() if weights else None, teachers)


def create(
    job: Job, completed: Sequence[RunRequest], reused: Mapping[str, Path], runs_root: Path, data_dir: str | None,
    choice: Choice,
) -> Path:  # fmt: skip
    """Create the submission's directory, and move it into place when it is complete. `reused`: earlier run directories
    to reuse, by the names of runs. Raises RunError."""
    with contextlib.ExitStack() as stack:
        try:
            runs_root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.creating(runs_root))
            building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=runs_root))
        except OSError as error:
            raise RunError(
                f"{runs_root}: cannot be written to ({error.strerror}); give another folder with --runs DIR"
            ) from None
        return _create(job, completed, reused, runs_root, data_dir, choice, building)


def _create(
    job: Job, completed: Sequence[RunRequest], reused: Mapping[str, Path], runs_root: Path, data_dir: str | None,
    choice: Choice, building: Path,
) -> Path:  # fmt: skip
    """See `create`. The submission is created in `building`."""
    section = job.section(choice.engine.name)
    name = ""
    try:
        follows = find_submission(runs_root, job.spec.follows).name if job.spec.follows else None
        name = _reserve(runs_root, f"{job.spec.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        requests = [_named(run, name) for run in completed]
        (building / "job.yaml").write_bytes(job.source)
        write_json(
            building / "submission.json",
            {
                "name": name,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "launcher": __version__,
                "git_sha": provenance.git_sha(CHECKOUT),
                "job_file": job.document.path,
                "engine": choice.engine.name,
                "image": vars(choice.image) if choice.image else None,
                "machine": choice.machine.describe(),
                "data_dir": data_dir,
                "max_parallel": job.spec.max_parallel,
                "on_failure": job.spec.on_failure,
                "follows": follows,
                **({choice.engine.name: section.model_dump(exclude_none=True)} if section is not None else {}),
                "runs": [request.name for request in requests if request.kind == "train"],
                "steps": [request.name for request in requests if request.kind != "train"],
            },
        )
        for request in requests:
            source = reused.get(request.name)
            if source is not None:  # the reused run was trained with the code of its source
                request = dataclasses.replace(request, code=read_request(source).code)
            create_run(building / request.name, request)
            if source is not None:
                reuse.link(source, building / request.name)
        with folders.opened(building) as folder:
            os.fchmod(folder.descriptor, 0o755)
        folders.flush(building)  # all files are on disk before they are visible
        building.rename(runs_root / name)
    except OSError as error:
        raise RunError(f"{runs_root}: the submission cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if name:
            with contextlib.suppress(OSError):
                (runs_root / name).rmdir()  # the reservation, if the submission was not moved over it
    return runs_root / name


def _named(request: RunRequest, submission: str) -> RunRequest:
    """The request with the submission's name in its command."""
    if not any("@submission/" in word for word in request.command):
        return request
    command = [word.replace("@submission/", f"@runs/{submission}/") for word in request.command]
    return dataclasses.replace(request, command=command)


def _reserve(runs_root: Path, name: str) -> str:
    """Reserve a name that no other submission has, even one of the same second, by creating an empty folder."""
    for candidate in (name, *(f"{name}-{number}" for number in range(2, 10_000))):
        try:
            (runs_root / candidate).mkdir()
        except FileExistsError:
            continue
        return candidate
    raise RunError(f"{runs_root}: thousands of submissions are named {name}; wait 1 s and repeat the command")


def rules(submission: Path) -> Rules:
    """The job's rules for all its runs together. Raises RunError."""
    written = read_submission(submission)
    return Rules(written.get("max_parallel"), written.get("on_failure", "continue"), written.get("follows"))


def requeue(
    submission: Path, mine: Lease, only: Collection[str] | None = None, say: Callable[[str], None] = lambda line: None,
    check: Callable[[Sequence[RunRequest]], None] = lambda requests: None,
) -> list[str]:  # fmt: skip
    """Queue again the runs that were lost, cancelled, ran out of time or memory, or failed for another reason than
    their configuration or data. Only for the launcher that holds the lease `mine`. `only`: the names of runs that may
    be queued; None: all. Returns the names.

    A step whose input cannot come, because a step that it needs has failed for good, is not queued: it would be
    cancelled at once; `say` is called with the reason. `check` is called with all requests that are going to start, and
    may raise an error before anything is changed. A `launcher stop` in the meantime stops these runs, too. Raises
    LeaseLostError, and RunError for a step of `only` whose input cannot come.
    """
    names = []
    digests = reuse.DataDigests(own_cache(submission.parent))
    in_queue = registry.queue_of(submission) is not None
    with Records(submission) as records:
        states: dict[str, Status] = {}
        for run_dir in records.run_dirs():
            status = records.look(run_dir.name)
            if status.state not in ENDED:
                registry.settle(run_dir, driving=True)
                status = records.look(run_dir.name)
            states[run_dir.name] = status
        wanted = {name for name, status in states.items() if is_repeated(status) and (only is None or name in only)}
        for name, why in without_input(wanted, states, records).items():
            if only is not None:
                raise RunError(f"{name}: {why}")
            say(f"{name} is not repeated: it {why}")
            wanted.remove(name)
        waiting = {
            name for name, status in states.items() if status.state == "queued" and (only is None or name in only)
        }
        starting = [records.look_at_request(name) for name in sorted(wanted | waiting)]
        check([_with_data(request, digests) for request in starting if isinstance(request, RunRequest)])
        for name in sorted(wanted):
            run_dir, status, request = submission / name, states[name], records.look_at_request(name)
            if isinstance(request, Status):  # the supervisor says so
                continue
            _renew(run_dir, request, mine, digests)
            reason, fence = f"resumed after {status.state}", mine.fence
            numbered = status.attempt + 1 if in_queue else None  # an engine's queue knows its jobs by this number
            try:
                append_event(run_dir, "queued", numbered, reason, durable=False, again=True, fence=fence)
            except FencedError:
                raise
            except RunError:
                if records.look(name).state in ENDED - {UNKNOWN}:
                    raise
                continue  # the run's own task in an engine's queue has repeated it meanwhile
            names.append(name)
        names += _queue_outdated(submission, mine, records, states, set(names), only)
        for name in stop_request.among(submission, names):
            if records.look(name).state == "queued":  # else `launcher stop` has seen it
                reason = "stopped before it started"
                append_event(submission / name, "cancelled", reason=reason, durable=False, fence=mine.fence)
            names.remove(name)
    folders.flush(submission)
    return names


def _queue_outdated(
    submission: Path, mine: Lease, records: Records, states: Mapping[str, Status], queued: Collection[str],
    only: Collection[str] | None,
) -> list[str]:  # fmt: skip
    """Queue steps again that have succeeded without a run that has succeeded since. Those that take a run of `queued`
    are queued by the supervisor, when it has succeeded. Returns the names."""
    training = frozenset(read_submission(submission).get("runs") or ())
    requests = {
        name: request
        for name in states
        if name not in training and not isinstance(request := records.look_at_request(name), Status)
    }
    known: dict[str, State] = {name: "queued" if name in queued else status.state for name, status in states.items()}
    names = []
    for name, why in steps.outdated(submission, requests, known).items():
        if only is None or name in only:
            attempt, fence = states[name].attempt + 1, mine.fence
            append_event(
                submission / name, "queued", attempt, f"again: {why}", durable=False, fence=fence, **{OUTDATED: True}
            )
            names.append(name)
    return names


def is_repeated(status: Status) -> bool:
    """Whether `resume` queues a run in this state again."""
    hopeless = status.figures.get("exit_code") in retry.HOPELESS
    return status.state in ENDED - GOOD - {UNKNOWN} and not hopeless


def without_input(wanted: Collection[str], states: Mapping[str, Status], records: Records) -> dict[str, str]:
    """The steps among the `wanted` runs whose input cannot come, because what they need has ended without success and
    is not wanted itself; each with the reason and what to type."""
    reasons: dict[str, str] = {}
    training = frozenset(read_submission(records.submission).get("runs") or ())
    for name in sorted(set(wanted) - training):
        request = records.look_at_request(name)
        if isinstance(request, Status):
            continue
        trained = [need for need in request.needs if need in training]
        other_steps = [need for need in request.needs if need not in training]
        dead = {need for need in request.needs if _is_dead(need, wanted, states) or need in reasons}
        missing = [need for need in other_steps if need in dead]
        if not missing and request.select is not None and trained and dead.issuperset(trained):
            missing = trained
        if missing:
            reasons[name] = _why_no_input(missing, states, records.submission)
    return reasons


def _is_dead(name: str, wanted: Collection[str], states: Mapping[str, Status]) -> bool:
    return name not in wanted and name in states and states[name].state in ENDED - GOOD


def _why_no_input(missing: Sequence[str], states: Mapping[str, Status], submission: Path) -> str:
    """`missing`: a step that is needed, or all runs of which one is needed."""
    first = states[missing[0]]
    said = f"is {first.state}" + (f" ({first.reason})" if first.reason else "")
    what = f"needs {missing[0]}, which {said}"
    if len(missing) > 1:
        what = f"needs one of {len(missing)} runs, and none has succeeded: {missing[0]} {said}"
    if not any(is_repeated(states[need]) for need in missing):
        return f"{what} and is never repeated; correct the job or its data, and submit it again"
    runs = shlex.quote(str(submission.parent))
    whole = f"launcher resume {submission.name} --runs {runs}"
    if len(missing) > 1:
        return f"{what}; continue them first: {whole}"
    one = f"launcher resume {submission.name}/{missing[0]} --runs {runs}"
    return f"{what}; continue that run first: {one}, or all runs: {whole}"


def _with_data(request: RunRequest, digests: reuse.DataDigests) -> RunRequest:
    """The request with the digest of its data as they are now; empty if that is unknown."""
    folder = request.config.get("root") or request.data_dir
    if request.kind != "train" or not request.data or not folder:
        return request
    try:
        return dataclasses.replace(request, data=_data_of(request, folder, digests))
    except (OSError, RunFileError):
        return dataclasses.replace(request, data="")


def _renew(run_dir: Path, request: RunRequest, mine: Lease, digests: reuse.DataDigests) -> None:
    """Record the data and code of the run's next attempt if they have changed since submission, so that its result is
    not reused as the result of the old ones. A run that continues from a checkpoint depends on both."""
    folder = request.config.get("root") or request.data_dir
    if request.kind != "train" or not request.code or not folder:
        return
    code = request.code if request.image_id else reuse.code_of(None)
    try:
        data = _data_of(request, folder, digests)
    except (OSError, RunFileError):  # the attempt itself will report the error
        data = ""
    if (code, data) == (request.code, request.data):
        return
    if trainer_files.has(run_dir, trainer_files.RESUME):
        code = code if code == request.code else f"{request.code}+{code}"
        data = data if data == request.data else f"{request.data}+{data}"
    mine.check()
    write_request(run_dir, dataclasses.replace(request, code=code, data=data), durable=False)
