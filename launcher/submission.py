"""Submissions: a job expanded into checked runs, and their directories, made whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import __version__, engines, fitting, matrix, reuse, runs, steps
from launcher.checkout import git_sha
from launcher.choice import Choice
from launcher.document import JobError
from launcher.engines.container import cache_dir
from launcher.machine import Machine
from launcher.runs import Resources, RunError, RunRequest
from launcher.sizes import show_size
from launcher.spec import PRIORITY, Job
from launcher.supervisor import Rules
from trainer import config as trainer_config
from trainer.errors import ConfigError
from trainer.files import write_json

CPU_CORES = 4
"""Cores of a run that trains on the CPU, where the job does not say: beyond them a small model gains little."""


@dataclass(frozen=True)
class Planned:
    """A run, and why it cannot run on the machine asked about (None: it can)."""

    request: RunRequest
    why_not: str | None = None
    place: str = ""
    """Where the job file asks for what cannot be had."""
    fit: fitting.Fit | None = None
    """What is foreseen of a training run's device memory."""


def expand(job: Job, machine: Machine, cpu_only: bool = False) -> list[Planned]:
    """Every run and step of the job, composed and checked, training runs first.

    Raises JobError with every fault of every run: each once, at the line that the value comes from.
    """
    spec = job.spec
    entries = [] if _trains_nothing(job) else matrix.expand(job.matrix, spec.exclude, spec.include)
    faults = [
        f"{job.document.place(('exclude', position))}: exclude.{position}: leaves no combination out; check its values"
        for position in matrix.unmatched(spec.matrix, spec.exclude)  # of the file's own axes
    ]
    if not entries and not _trains_nothing(job):
        faults.append(f"{job.document.place(('exclude',))}: exclude leaves no run")
    priorities = [int(entry.values.pop(PRIORITY, 0)) for entry in entries]
    keys = matrix.differing([entry.values for entry in entries])
    common = _common(job)
    positions = _positions(job)
    resources, why_not, place = _resources(job, machine, cpu_only)
    width = max(3, len(str(len(entries))))
    planned: list[Planned] = []
    for index, (entry, priority) in enumerate(zip(entries, priorities, strict=True), start=1):
        words, origins = _overrides(job, entry, positions)
        try:
            composed = trainer_config.compose(words)
        except ConfigError as error:
            faults += [_attributed(line, origins, job) for line in str(error).splitlines()]
            continue
        summary = _summary(composed, words)
        name = matrix.run_name(index, entry.values, keys, summary["model"])
        plain = trainer_config.view(composed)
        # The micro-batch that this adds is left out of the identity: on another machine it is the same run.
        fit = fitting.fit(composed, resources, machine)
        request = RunRequest(
            name=name.zfill(len(name) + width - len(name.split("-")[0])),
            index=index,
            kind="train",
            command=["train", *words, *fit.words],
            overrides=[*words, *fit.words],
            resources=resources,
            fetches=composed.model.name if composed.model.pretrained and not composed.model.weights else None,
            **common,
            priority=priority,
            identity=reuse.identity(plain),
            config=summary,
            predicted_memory=fit.predicted,
        )
        if fit.why_not and not why_not:
            key = next((key for key in ("data.img_size", "model.name", "model", "data") if key in origins), "")
            where = f"{_place(origins.get(key, ()), job)}: {request.name}"
            planned.append(Planned(request, f"{machine.name}: {fit.why_not}", where, fit))
        else:
            planned.append(Planned(request, why_not, place, fit))
    if faults:
        raise JobError("\n".join(sorted(dict.fromkeys(faults), key=_line)))
    return planned + _steps(job, [p.request for p in planned], resources)


def _common(job: Job) -> dict[str, Any]:
    """What all requests of a job have in common."""
    spec = job.spec
    return {
        "image": spec.image,
        "network": None if spec.network == "auto" else spec.network,
        "memory_place": f"{job.document.place(('resources', 'memory'))}" if spec.resources.memory != "auto" else "",
        "timeout": spec.timeout,
        "retry": runs.Retry(spec.retry.attempts, tuple(spec.retry.on), spec.retry.backoff),
        "share_gpu": spec.resources.share_gpu,
        "env": spec.env,
        "secrets": spec.secrets,
    }


def _line(fault: str) -> int:
    """The line that a fault names, so that faults come in the order of the file; 0 for the command line's."""
    match = re.match(r"[^:]*:(\d+):", fault)
    return int(match[1]) if match else 0


def _trains_nothing(job: Job) -> bool:
    """A job of steps alone, on the runs of an earlier submission."""
    spec = job.spec
    elsewhere = [step.from_ is None or step.from_.submission is not None for step in spec.after]
    return not (job.matrix or spec.include or spec.overrides or job.overrides) and bool(elsewhere) and all(elsewhere)


def _positions(job: Job) -> dict[str, dict[str, int]]:
    """Where each value of each axis of the file stands first: a look for every run of thousands would be long."""
    found: dict[str, dict[str, int]] = {}
    for key, axis in job.spec.matrix.items():
        for position, value in enumerate(axis):
            found.setdefault(key, {}).setdefault(matrix.override_value(value), position)
    return found


def _overrides(
    job: Job, entry: matrix.Entry, positions: dict[str, dict[str, int]]
) -> tuple[list[str], dict[str, tuple[str | int, ...] | None]]:
    """The run's overrides in Hydra's grammar, and where each key's value stands (None: on the command line)."""
    values: dict[str, str] = {}
    origins: dict[str, tuple[str | int, ...] | None] = {}
    for key, value in job.spec.overrides.items():
        values[key], origins[key] = matrix.override_value(value), ("overrides", key)
    for key, value in entry.values.items():
        values[key] = value if key in job.axes else matrix.override_value(value)
        position = positions.get(key, {}).get(values[key])
        including = [i for i in entry.includes if key in job.spec.include[i]]
        if key in job.axes:
            origins[key] = None
        elif including:
            origins[key] = ("include", including[-1], key)
        else:
            origins[key] = ("matrix", key) if position is None else ("matrix", key, position)
    words = {key: f"{key}={value}" for key, value in values.items()}
    for word in job.overrides:
        key = word.partition("=")[0]
        words[key], origins[key] = word, None
    return list(words.values()), origins


def _attributed(line: str, origins: dict[str, tuple[str | int, ...] | None], job: Job) -> str:
    """A fault of the trainer's with the place that its value comes from."""
    key = line.partition("=")[0].partition(":")[0].strip()
    known = next((k for k in origins if k == key or key.startswith(k + ".") or k.startswith(key + ".")), None)
    if known is None:
        return f"{job.document.place(())}: {line}"
    return f"{_place(origins[known], job)}: {line}"


def _place(path: tuple[str | int, ...] | None, job: Job) -> str:
    return "the command line" if path is None else job.document.place(path)


def _summary(composed: trainer_config.Config, words: Sequence[str]) -> dict[str, Any]:
    named = any(word.startswith("model.name=") for word in words)
    return {
        "model": composed.model.name if named else composed.choices["model"],
        "data": composed.choices["data"],
        "training": composed.choices["training"],
        "img_size": composed.data.img_size,
        "batch_size": composed.training.batch_size,
        "epochs": composed.training.epochs,
        "seed": composed.seed,
        "root": composed.data.root,
        "format": composed.data.format,
        "weights": composed.model.weights,
    }


def _resources(job: Job, machine: Machine, cpu_only: bool) -> tuple[Resources, str | None, str]:
    """What each run gets on this machine; why that cannot be, and where it is asked for."""
    asked = job.spec.resources
    devices = () if cpu_only else machine.devices
    gpus = min(1, len(devices)) if asked.gpus == "auto" else 0 if cpu_only else asked.gpus
    if asked.cpus != "auto":
        cpus = asked.cpus
    elif gpus and not asked.share_gpu:
        cpus = max(1.0, machine.cpus * gpus // max(1, len(devices)))
    else:
        cpus = max(1.0, min(machine.cpus, CPU_CORES))
    memory = None if asked.memory == "auto" else asked.memory
    cap = None if asked.gpu_memory == "auto" else asked.gpu_memory
    large = [gpu for gpu in machine.gpus if gpu.memory is None or gpu.memory >= (cap or 0)]
    why, field = None, ""
    if gpus > len(devices):
        field, why = "gpus", f"{gpus} GPU asked for, {len(devices)} there (--cpu trains without)"
    elif cap is not None and gpus and machine.gpus and gpus > len(large):
        field, why = "gpu_memory", f"{gpus} GPU with {show_size(cap)} asked for, {len(large)} there"
    elif cpus > machine.cpus:
        field, why = "cpus", f"{cpus:g} cores asked for, {machine.cpus:g} there"
    elif memory is not None and memory > machine.memory:
        field, why = "memory", f"{show_size(memory)} asked for, {show_size(machine.memory)} there"
    return (
        Resources(
            gpus=gpus,
            gpu_memory=cap,
            memory=memory,
            cpus=cpus,
            shm=None if asked.shm == "auto" else asked.shm,
        ),
        f"{machine.name}: {why}" if why else None,
        f"{job.document.place(('resources', field))}: resources.{field}" if why else "",
    )


def _steps(job: Job, trained: Sequence[RunRequest], resources: Resources) -> list[Planned]:
    made: dict[str, RunRequest] = {}
    for offset, step in enumerate(job.spec.after):
        index = len(trained) + 1 + offset
        options: list[str] = []
        for key, value in step.args.items():
            values = value if isinstance(value, list) else [value]
            options += [f"--{key}", *(matrix.override_value(v) for v in values)]
        select: dict[str, Any] | None = None
        command = options
        needs = [made[need].name for need in step.needs]
        if step.from_ is not None:
            select = step.from_.model_dump(exclude_none=True)
            if "submission" not in select:
                needs = [run.name for run in _selected(job, offset, select, trained)] + needs
        else:
            source = made[step.needs[-1]]
            command = steps.command(step.step, [f"@submission/{source.name}/ensemble.json"], options)
            if source.kind != "ensemble":
                place = job.document.place(("after", offset, "needs"))
                raise JobError(
                    f"{place}: after.{offset}.needs: '{step.needs[-1]}' leaves no model; name an ensemble, or say from:"
                )
        made[step.name] = RunRequest(
            name=f"{index:03d}-{step.name}",
            index=index,
            kind=step.step,
            command=command,
            needs=needs,
            select=select,
            resources=resources,
            **_common(job),
            config={"model": step.args.get("method", "soft_voting") if step.step == "ensemble" else step.step},
        )
    return [Planned(request) for request in made.values()]


def _selected(job: Job, offset: int, select: dict[str, Any], trained: Sequence[RunRequest]) -> Sequence[RunRequest]:
    """The runs that a step waits for. Raises JobError for a pattern that no run's name fits."""
    if "top" in select:
        return trained
    for position, pattern in enumerate(select["runs"]):
        if not any(runs.fits(run.name, pattern) for run in trained):
            place = job.document.place(("after", offset, "from", "runs", position))
            names = ", ".join(run.name for run in trained[:12])
            raise JobError(f"{place}: after.{offset}.from.runs: no run is called '{pattern}'; there are {names}")
    return [run for run in trained if any(runs.fits(run.name, pattern) for pattern in select["runs"])]


def refuse_misfits(planned: Sequence[Planned]) -> None:
    """Raises JobError when a run asks for more than the machine has."""
    faults = {f"{each.place}: {each.why_not}" for each in planned if each.why_not}
    if faults:
        remedy = "ask for less by --set resources.<field>=…, or " if any(": resources." in f for f in faults) else ""
        raise JobError("\n".join(sorted(faults)) + f"\n{remedy}see: launcher plan")


def find_data(given: str | None, planned: Sequence[Planned]) -> str | None:
    """The data folder of the runs: --data, $DATA_DIR or ./data, or None where every run names its own.

    Raises RunError where one is not there, or holds nothing that its runs could train on.
    """
    shared = given or os.environ.get("DATA_DIR") or "data"
    of_shared = "--data" if given else "DATA_DIR" if os.environ.get("DATA_DIR") else "the default"
    trained = [each.request.config for each in planned if each.request.kind == "train"]
    wanted: dict[tuple[str, str], set[str]] = {}
    for config in trained:
        folder = (config["root"], "data.root") if config.get("root") else (shared, of_shared)
        wanted.setdefault(folder, set()).add(config["format"])
    if not trained:  # steps alone
        wanted[(shared, of_shared)] = set()
    for (name, source), formats in sorted(wanted.items()):
        if why := _why_no_data(Path(name).expanduser(), formats):
            raise RunError(
                f"{name}: the data folder ({source}) {why}; name one by --data DIR or DATA_DIR, "
                f"or draw one: python -m trainer sample-data {name if why == 'does not exist' else 'DIR'}"
            )
    return str(Path(shared).expanduser().resolve()) if (shared, of_shared) in wanted else None


def _why_no_data(folder: Path, formats: set[str]) -> str | None:
    """Why runs of these values of `data.format` cannot train on the folder, by what lies on its top; None: they can.

    The trainer judges by the same rule, and then opens every image.
    """
    try:
        if not folder.is_dir():
            return "is not a folder" if folder.exists() else "does not exist"
        has_table = (folder / "train.csv").is_file()
        base = folder / "train" if (folder / "train").is_dir() else folder
        kept = [each.name for each in base.iterdir() if each.is_dir() and not each.name.startswith(".")]
    except OSError as error:
        return f"cannot be read ({error.strerror}: {error.filename})"
    has_classes = bool(kept if base != folder else set(kept) - {"test"})
    if "csv" in formats and not has_table:
        return "holds no train.csv, which data.format=csv asks for"
    if "imagefolder" in formats and not has_classes:
        return "holds no folder a class below train/, which data.format=imagefolder asks for"
    if "auto" in formats and not has_table and not has_classes:
        return "holds neither train.csv nor a folder a class below train/"
    return None


def check_sources(job: Job, runs_root: Path) -> None:
    """Raises JobError where the job follows a submission, or a step takes runs of one, and there is none such."""
    if job.spec.follows:
        try:
            runs.find_submission(runs_root, job.spec.follows)
        except RunError as error:
            raise JobError(f"{job.document.place(('follows',))}: follows: {error}") from None
    for index, step in enumerate(job.spec.after):
        if step.from_ is not None and step.from_.submission is not None and not job.spec.follows:
            try:
                steps.members(step.from_.model_dump(exclude_none=True), runs_root / "any")
            except RunError as error:
                place = job.document.place(("after", index, "from", "submission"))
                raise JobError(f"{place}: after.{index}.from: {error}") from None


def complete(planned: Sequence[Planned], runs_root: Path, data_dir: str | None, choice: Choice) -> list[RunRequest]:
    """The requests with all that is known only here and now: image, data, code. Raises RunError."""
    code = reuse.code_of(choice.image)
    cache = cache_dir(runs_root)
    known: dict[tuple[str, str | None], str] = {}
    requests = []
    for each in planned:
        request = dataclasses.replace(
            each.request,
            data_dir=data_dir,
            image=choice.image.name if choice.image else None,
            image_id=choice.image.id if choice.image else None,
            cwd=str(Path.cwd()),
        )
        if request.kind == "train":
            key = (str(request.config.get("root") or data_dir), request.config.get("weights"))
            if key not in known:
                weights = Path(key[1]).expanduser() if key[1] else None
                try:
                    known[key] = reuse.data_of(Path(key[0]).expanduser(), weights, cache)
                except OSError as error:
                    raise RunError(f"{error.filename}: the data folder cannot be read: {error.strerror}") from None
            request = dataclasses.replace(request, code=code, data=known[key])
        requests.append(request)
    return requests


def create(
    job: Job, completed: Sequence[RunRequest], reused: Mapping[str, Path], runs_root: Path, data_dir: str | None,
    choice: Choice,
) -> Path:  # fmt: skip
    """The submission's directory with everything in it, moved into place at once. `reused`: earlier run directories
    that serve for runs, by their names. Raises RunError."""
    try:
        runs_root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".new-", dir=runs_root))
    except OSError as error:
        raise RunError(
            f"{runs_root}: cannot be written to ({error.strerror}); name another folder by --runs DIR"
        ) from None
    follows = runs.find_submission(runs_root, job.spec.follows).name if job.spec.follows else None
    name = _reserve(runs_root, f"{job.spec.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        requests = [
            dataclasses.replace(each, command=[word.replace("@submission/", f"@runs/{name}/") for word in each.command])
            for each in completed
        ]
        (building / "job.yaml").write_bytes(job.source)
        write_json(
            building / "submission.json",
            {
                "name": name,
                "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "launcher": __version__,
                "git_sha": git_sha(),
                "job_file": job.document.path,
                "engine": choice.engine.name,
                "image": dataclasses.asdict(choice.image) if choice.image else None,
                "machine": choice.machine.describe(),
                "data_dir": data_dir,
                "max_parallel": job.spec.max_parallel,
                "on_failure": job.spec.on_failure,
                "follows": follows,
                "runs": [request.name for request in requests if request.kind == "train"],
                "steps": [request.name for request in requests if request.kind != "train"],
            },
        )
        for request in requests:
            source = reused.get(request.name)
            if source is not None:  # trained by what its source was trained by
                request = dataclasses.replace(request, code=runs.read_request(source).code)
            runs.create(building / request.name, request)
            if source is not None:
                reuse.link(source, building / request.name)
        building.chmod(0o755)
        building.rename(runs_root / name)
    except OSError as error:
        raise RunError(f"{runs_root}: the submission cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        with contextlib.suppress(OSError):
            (runs_root / name).rmdir()  # the reservation, where nothing was moved over it
    return runs_root / name


def _reserve(runs_root: Path, name: str) -> str:
    """Take a name that no other submission has, also one of the same second, by an empty folder in its place."""
    for each in (name, *(f"{name}-{number}" for number in range(2, 10_000))):
        try:
            (runs_root / each).mkdir()
        except FileExistsError:
            continue
        return each
    raise RunError(f"{runs_root}: there are thousands of submissions called {name}; wait a second")


def read(submission: Path) -> dict[str, Any]:
    """submission.json. Raises RunError."""
    try:
        content: dict[str, Any] = json.loads((submission / "submission.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{submission / 'submission.json'}: cannot be read: {error}") from None
    return content


def rules(submission: Path) -> Rules:
    """What the job says of all its runs together. Raises RunError."""
    written = read(submission)
    return Rules(written.get("max_parallel"), written.get("on_failure", "continue"), written.get("follows"))


def requeue(submission: Path) -> list[str]:
    """Queue again what was lost, cancelled, ran out of time or memory, or failed for no fault of its configuration or
    data. For the launcher that drives the submission. Returns the names."""
    names = []
    for run_dir in runs.list_runs(submission):
        engines.settle(run_dir, driving=True)
        status = runs.read_status(run_dir)
        hopeless = status.figures.get("exit_code") in (64, 65)
        if status.state in runs.ENDED - runs.GOOD and not hopeless:
            _renew(run_dir)
            runs.append_event(run_dir, "queued", status.attempt + 1, f"resumed after {status.state}")
            names.append(run_dir.name)
    return names


def _renew(run_dir: Path) -> None:
    """Put down what the run's next attempt trains on and with, where that has changed since it was submitted: what it
    brings must not be reused for what it is not. One that goes on from a checkpoint is of both."""
    request = runs.read_request(run_dir)
    folder = request.config.get("root") or request.data_dir
    if request.kind != "train" or not request.code or not folder:
        return
    weights = request.config.get("weights")
    code = request.code if request.image_id else reuse.code_of(None)
    try:
        data = reuse.data_of(
            Path(folder).expanduser(), Path(weights).expanduser() if weights else None, cache_dir(run_dir.parent.parent)
        )
    except OSError:  # the attempt will say so in its own words
        data = ""
    if (code, data) == (request.code, request.data):
        return
    if (run_dir / "last.ckpt").exists():
        code = code if code == request.code else f"{request.code}+{code}"
        data = data if data == request.data else f"{request.data}+{data}"
    runs.write_request(run_dir, dataclasses.replace(request, code=code, data=data))
