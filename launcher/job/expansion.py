"""Expands a job into its runs: composes and checks each, assigns resources, and checks whether it fits a machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.base.errors import DamagedFileError, Errors, JobError, RunError
from launcher.base.sizes import show_size
from launcher.host.machine import Machine
from launcher.job import folds, matrix, named_files, steps
from launcher.job.document import COMMAND_LINE, MOST_FAULTS, in_order
from launcher.job.equal_runs import EqualRuns
from launcher.job.origins import attributed, overrides_of, place_of, positions_of
from launcher.job.schema import StepSpec
from launcher.job.spec import PRIORITY, Job
from launcher.memory import fitting
from launcher.record import reuse, trainer_files
from launcher.record.find import find_submission, fits, is_glob
from launcher.record.request import Resources, Retry, RunRequest
from trainer.base import cores
from trainer.base.errors import ConfigError
from trainer.base.plural import counted
from trainer.config.compose import compose_shared
from trainer.config.plain import view
from trainer.config.schema import Config, DataConfig

SPLITTING = ("val_fraction", "split_seed", "group_column", "allowed_leaks")
"""Fields of the data's configuration that determine the split, beside folds."""
CPU_CORES = 4
"""Default number of cores of a run on the CPU. More cores help a small model little."""


@dataclass(frozen=True)
class Planned:
    """A run, and why it cannot run on the machine (None: it can)."""

    request: RunRequest
    why_not: str | None = None
    misfits: tuple[str, ...] = ()
    """The same as errors, each with the place in the job file of the request that the machine cannot meet."""
    fit: fitting.Fit | None = None
    """The predicted device memory of a training run."""


def expand(job: Job, machine: Machine, cpu_only: bool = False, runs_root: Path | None = None) -> list[Planned]:
    """Every run and step of the job, composed and checked, training runs first. `runs_root` keeps traces of memory.

    Raises JobError with every error of every run, without duplicates, each at the line of its value. Raises
    DamagedFileError if the only errors are files that have no weights.
    """
    errors = Errors()
    planned = expand_valid(job, machine, errors, cpu_only, runs_root)
    errors.raise_all()
    return planned


def expand_valid(
    job: Job, machine: Machine, collected: Errors, cpu_only: bool = False, runs_root: Path | None = None
) -> list[Planned]:
    """The runs and steps without an error, as `expand` returns them. Adds the errors to `collected`."""
    with collected.collected():
        return _expanded(job, machine, collected, cpu_only, runs_root)
    return []


def _expanded(job: Job, machine: Machine, collected: Errors, cpu_only: bool, runs_root: Path | None) -> list[Planned]:
    spec = job.spec
    if too_many := matrix.too_many(job.matrix, spec.exclude, spec.include):
        field, why = too_many
        place = COMMAND_LINE if field == "matrix" and job.axes else job.document.place((field,))
        raise JobError(f"{place}: {field}: {why}")
    if why := _too_large(job):
        raise JobError(why)
    entries = [] if _trains_nothing(job) else matrix.expand(job.matrix, spec.exclude, spec.include)
    if len(entries) > matrix.MOST_RUNS:
        raise JobError(
            f"{job.document.place(('include',))}: include: {len(entries):,} runs with those of matrix; a job has at "
            f"most {matrix.MOST_RUNS:,}: split it into several jobs"
        )
    errors = [
        f"{job.document.place(('exclude', position))}: exclude.{position}: matches no combination; check its values"
        for position in matrix.unmatched(spec.matrix, spec.exclude)  # axes of the file only
    ]
    if not entries and not _trains_nothing(job):
        errors.append(f"{job.document.place(('exclude',))}: exclude leaves no run")
    if why := _too_many_steps(job, len(entries)):
        raise JobError(why)
    priorities = [int(entry.values.pop(PRIORITY, 0)) for entry in entries]
    keys = matrix.differing([entry.values for entry in entries])
    of_job = _common(job)
    positions = positions_of(job)
    resources, lacking = _resources(job, machine, cpu_only)
    why_not = f"{machine.name}: {'; '.join(lacking.values())}" if lacking else None
    misfits = tuple(unavailable(job, machine, cpu_only))
    width = max(3, len(str(len(entries))))
    planned: list[Planned] = []
    alike: dict[tuple[object, ...], _Alike] = {}
    texts: dict[int, tuple[object, str]] = {}
    needed = named_files.NamedFiles(job, machine, runs_root)
    damaged: list[str] = []
    equal = EqualRuns(entries, [*spec.overrides, *(word.partition("=")[0] for word in job.overrides)])
    for index, (entry, priority) in enumerate(zip(entries, priorities, strict=True), start=1):
        if len(errors) > MOST_FAULTS:
            break
        words, origins = overrides_of(job, entry, positions)
        try:
            composed = compose_shared(words)
        except ConfigError as error:
            lines = str(error).split("\n")
            errors += [attributed(line, origins, job) for line in lines]
            for fault in needed.faults_of_words(words):
                if not any(line.startswith(fault.text.partition(":")[0]) for line in lines):
                    (damaged if fault.damaged else errors).append(attributed(fault.text, origins, job))
            continue
        known = _key(composed)
        if known not in alike:
            # The identity excludes the micro-batch that this adds: on another machine it is the same run.
            fit = fitting.fit(composed, resources, machine, runs_root)
            shm = _loader_shm(composed, resources, machine)
            alike[known] = _Alike(composed, needed.faults(composed), _summary(composed), fit, shm)
        common = alike[known]
        for fault in common.faults:
            (damaged if fault.damaged else errors).append(attributed(fault.text, origins, job))
        fit, summary = common.fit, {**common.summary, "seed": composed.seed}
        name = matrix.run_name(index, entry.values, keys, summary["model"])
        name = name.zfill(len(name) + width - len(name.split("-")[0]))
        plain = view(composed)
        identity = reuse.identity(plain, texts)
        equal.add(index, name, plain, identity, origins)
        request = RunRequest(
            name=name,
            index=index,
            kind="train",
            command=["train", *words, *fit.words],
            overrides=[*words, *fit.words],
            resources=resources,
            fetches=composed.model.name if composed.model.pretrained and not composed.model.weights else None,
            **of_job,
            priority=priority,
            identity=identity,
            configuration=_configuration(words, composed),
            config=summary,
            predicted_memory=fit.predicted,
            loader_shm=common.loader_shm,
        )
        if fit.why_not and not why_not:
            key = next((key for key in ("data.img_size", "model.name", "model", "data") if key in origins), "")
            said = f"{machine.name}: {fit.why_not}"
            planned.append(Planned(request, said, (f"{place_of(origins.get(key, ()), job)}: {name}: {said}",), fit))
        else:
            planned.append(Planned(request, why_not, misfits, fit))
    errors += equal.errors(job.matrix, lambda path: place_of(path, job))
    whole = len(planned) == len(entries)  # else the run that a step names may be missing because of its error
    try:
        steps_planned = _steps(job, [p.request for p in planned], resources) if whole else []
    except JobError as error:
        steps_planned = []
        errors += str(error).split("\n")
    if errors:
        collected.add(JobError(in_order(errors)))
    if damaged:
        collected.add(DamagedFileError(in_order(damaged)))
    return planned + steps_planned


@dataclass(frozen=True)
class _Alike:
    """What runs have in common that differ only in the seed."""

    composed: Config
    """One of them. It keeps the sections alive whose identities are in the key."""
    faults: Sequence[named_files.Fault]
    summary: dict[str, Any]
    fit: fitting.Fit
    loader_shm: int


def _key(composed: Config) -> tuple[object, ...]:
    """Equal for runs that differ only in the seed."""
    sections = id(composed.model), id(composed.data), id(composed.training)
    rest = (
        value for key, value in vars(composed).items() if key not in ("model", "data", "training", "seed", "choices")
    )
    return (*sections, *composed.choices.values(), *rest)


def _loader_shm(config: Config, resources: Resources, machine: Machine) -> int:
    """Bytes of shared memory that the loader of a training run fills at most."""
    training, device = config.training, "cuda" if resources.gpus and not machine.mps else "cpu"
    images, available = training.micro_batch or training.batch_size, int(resources.cpus or machine.cpus)
    devices = config.devices or max(1, resources.gpus)
    return cores.shared_bytes(training.num_workers, images, config.data.img_size, device, devices, available)


def _common(job: Job) -> dict[str, Any]:
    """Fields that all requests of a job have in common."""
    spec = job.spec
    return {
        "image": spec.image,
        "network": None if spec.network == "auto" else spec.network,
        "memory_place": f"{job.document.place(('resources', 'memory'))}" if spec.resources.memory != "auto" else "",
        "shm_place": job.document.place(("resources", "shm") if spec.resources.shm != "auto" else ("resources",)),
        "timeout": spec.timeout,
        "retry": Retry(spec.retry.attempts, tuple(spec.retry.on), spec.retry.backoff),
        "share_gpu": spec.resources.share_gpu,
        "env": spec.env,
        "secrets": spec.secrets,
    }


def _too_large(job: Job) -> str:
    """That a job has more different keys than any configuration; empty if it has not."""
    spec, place = job.spec, job.document.place
    keys: set[str] = set()
    parts = ((("matrix",), job.matrix), (("overrides",), spec.overrides))
    for path, values in (*parts, *((("include", position), each) for position, each in enumerate(spec.include))):
        keys.update(values)
        if len(keys) > matrix.MOST_KEYS:
            return f"{place(path)}: more than {matrix.MOST_KEYS:,} different keys; a configuration has fewer"
    return ""


def _too_many_steps(job: Job, runs: int) -> str:
    """That choosing among so many runs for all steps would take too long; empty if it would not."""
    pairs = matched = globs = 0
    for position, step in enumerate(job.spec.after):
        if step.from_ is not None and step.from_.submission is None:
            pairs += runs
            matched += runs * len(step.from_.runs or ())
            globs += sum(is_glob(pattern) for pattern in step.from_.runs or ())
            if globs > matrix.MOST_GLOBS:
                place = job.document.place(("after", position))
                return f"{place}: after: more than {matrix.MOST_GLOBS:,} patterns; write fewer, or names of runs"
            if pairs > matrix.MOST_COMPARED or matched > matrix.MOST_MATCHED:
                return (
                    f"{job.document.place(('after', position))}: after: too many steps and patterns for "
                    f"{counted(runs, 'run')} (at most {matrix.MOST_COMPARED:,} pairs of step and run, "
                    f"{matrix.MOST_MATCHED:,} of pattern and "
                    "run): split the job into several"
                )
    return ""


def _trains_nothing(job: Job) -> bool:
    """Whether a job has only steps, on the runs of an earlier submission."""
    spec = job.spec
    elsewhere = [step.from_ is None or step.from_.submission is not None for step in spec.after]
    return not (job.matrix or spec.include or spec.overrides or job.overrides) and bool(elsewhere) and all(elsewhere)


def _configuration(words: Sequence[str], composed: Config) -> str:
    if not (cut := composed.data.folds):
        return ""
    fold = composed.data.fold or 0
    taught = [folds.taught_by(teacher, cut, fold) for teacher in composed.training.teachers]
    return folds.configuration(words, sorted(taught))


def _summary(composed: Config) -> dict[str, Any]:
    return {
        "model": composed.choices["model"],
        "data": composed.choices["data"],
        "training": composed.choices["training"],
        "img_size": composed.data.img_size,
        "batch_size": composed.training.batch_size,
        "epochs": composed.training.epochs,
        "seed": composed.seed,
        "root": composed.data.root,
        "format": composed.data.format,
        "weights": composed.model.weights,
        "teachers": composed.training.teachers,
        **({"folds": composed.data.folds, "fold": composed.data.fold} if composed.data.folds else {}),
        **({"splitting": splitting} if (splitting := _splitting(composed)) else {}),
    }


def _splitting(composed: Config) -> dict[str, Any]:
    """Further values that determine the split and the number of steps, where they are not the default."""
    values = {f"data.{field}": getattr(composed.data, field) for field in SPLITTING}
    changed = {key: value for key, value in values.items() if value != getattr(DataConfig, key[5:], [])}
    return changed if composed.training.drop_last else {**changed, "training.drop_last": False}


def _resources(job: Job, machine: Machine, cpu_only: bool) -> tuple[Resources, dict[str, str]]:
    """Resources of each run on this machine, and by field why they are not available."""
    demand = job.spec.resources
    devices = () if cpu_only else machine.devices
    gpus = min(1, len(devices)) if demand.gpus == "auto" else 0 if cpu_only else demand.gpus
    cpus = default_cpus(machine, gpus, demand.share_gpu) if demand.cpus == "auto" else demand.cpus
    memory = None if demand.memory == "auto" else demand.memory
    cap = None if demand.gpu_memory == "auto" else demand.gpu_memory
    usable = machine.for_run_on(gpus).gpus
    large = [gpu for gpu in usable if gpu.memory is None or gpu.memory >= (cap or 0)]
    why: dict[str, str] = {}
    if gpus > len(devices):
        hidden = "".join(f"; {line}" for line in (*machine.lost, machine.ignored) if line)
        why["gpus"] = f"{gpus} GPU requested, {len(devices)} available (--cpu trains without a GPU){hidden}"
    elif machine.gpus and gpus > len(usable):
        why["gpus"] = f"{gpus} GPU requested, but CUDA can use one MIG instance only"
    elif cap is not None and gpus and machine.gpus and gpus > len(large):
        why["gpu_memory"] = f"{gpus} GPU with {show_size(cap)} requested, {len(large)} available"
    if cpus > machine.cpus:
        why["cpus"] = f"{counted(cpus, 'core')} requested, {machine.cpus:g} available"
    if memory is not None and memory > machine.memory:
        why["memory"] = f"{show_size(memory)} requested, {show_size(machine.memory)} available"
    return (
        Resources(
            gpus=gpus,
            gpu_memory=cap,
            memory=memory,
            cpus=cpus,
            shm=None if demand.shm == "auto" else demand.shm,
        ),
        why,
    )


def unavailable(job: Job, machine: Machine, cpu_only: bool = False) -> list[str]:
    """The resources that the job requests for each run and the machine does not have, each with its place."""
    return [
        f"{job.document.place(('resources', field))}: resources.{field}: {machine.name}: {why}"
        for field, why in _resources(job, machine, cpu_only)[1].items()
    ]


def default_cpus(machine: Machine, gpus: int, share: bool) -> float:
    """Cores of a run with `resources.cpus: auto`: its part of the machine by its GPUs, or a few."""
    if gpus and not share:
        return max(1.0, machine.cpus * gpus // max(1, len(machine.devices)))
    return max(1.0, min(machine.cpus, CPU_CORES))


def _steps(job: Job, trained: Sequence[RunRequest], resources: Resources) -> list[Planned]:
    """Expand the steps. Raises JobError with the errors of all steps."""
    requests: dict[str, RunRequest] = {}
    errors: list[str] = []
    for offset, step in enumerate(job.spec.after):
        index = len(trained) + 1 + offset
        options: list[str] = []
        for key, value in step.args.items():
            values = value if isinstance(value, list) else [value]
            options += [f"--{key}", *(matrix.override_value(v) for v in values)]
        select: dict[str, Any] | None = None
        command = options
        needs = [requests[need].name for need in step.needs]
        if step.from_ is not None:
            select = step.from_.model_dump(exclude_none=True)
            if "submission" not in select:
                if step.step != "ensemble" and "top" in select and folds.counts(trained):
                    place = job.document.place(("after", offset, "from"))
                    errors.append(f"{place}: after.{offset}.from.top: {steps.ONE_FOLD}")
                needs = [run.name for run in _selected(job, offset, select, trained, errors)] + needs
        else:
            source = requests[step.needs[-1]]
            command = steps.step_command(step.step, [f"@submission/{source.name}/ensemble.json"], options)
            if source.kind != "ensemble":
                place = job.document.place(("after", offset, "needs"))
                errors.append(
                    f"{place}: after.{offset}.needs: '{step.needs[-1]}' gives no model; name an ensemble or write from:"
                )
        requests[step.name] = RunRequest(
            name=f"{index:03d}-{step.name}",
            index=index,
            kind=step.step,
            command=command,
            needs=needs,
            select=select,
            resources=resources,
            loader_shm=max((run.loader_shm for run in trained), default=0),
            **_common(job),
            config={"model": step.args.get("method", "soft_voting") if step.step == "ensemble" else step.step},
        )
    if errors:
        raise JobError(in_order(errors))
    return [Planned(request) for request in requests.values()]


def _selected(
    job: Job, offset: int, select: dict[str, Any], trained: Sequence[RunRequest], errors: list[str]
) -> Sequence[RunRequest]:
    """The runs that a step waits for. Appends to `errors` if no run matches a pattern."""
    if "top" in select:
        return trained
    for position, pattern in enumerate(select["runs"]):
        if len(errors) > MOST_FAULTS:
            return []
        if not any(fits(run.name, pattern) for run in trained):
            place = job.document.place(("after", offset, "from", "runs", position))
            names = ", ".join(run.name for run in trained[:12])
            errors.append(f"{place}: after.{offset}.from.runs: no run matches '{pattern}'; runs: {names}")
    return [run for run in trained if any(fits(run.name, pattern) for pattern in select["runs"])]


def refuse_misfits(planned: Sequence[Planned], lacking: Sequence[str] = ()) -> None:
    """Raises JobError if a run requests more than the machine has. `lacking`: see `unavailable`, for a job whose runs
    have all other errors."""
    errors = [*lacking, *(line for run in planned for line in run.misfits)]
    if errors:
        remedy = "request less with --set resources.<field>=…, or " if any(": resources." in f for f in errors) else ""
        raise JobError(in_order(errors) + f"\n{remedy}see: launcher plan")


def check_follows(job: Job, runs_root: Path) -> None:
    """Raises JobError if the job follows a submission that does not exist."""
    if job.spec.follows:
        try:
            find_submission(runs_root, job.spec.follows)
        except RunError as error:
            raise JobError(f"{job.document.place(('follows',))}: follows: {error}") from None


def check_sources(job: Job, runs_root: Path) -> None:
    """Raises JobError if the job follows, or a step takes runs of, a submission that does not exist, and
    DamagedFileError if a checkpoint of these runs is damaged."""
    check_follows(job, runs_root)
    errors, damaged = [], []
    for index, step in _valid_steps(job):
        if step.from_ is None or step.from_.submission is None or job.spec.follows:
            continue
        place = f"{job.document.place(('after', index, 'from', 'submission'))}: after.{index}.from"
        try:
            runs = steps.selected_runs(step.from_.model_dump(exclude_none=True), runs_root / "any")
        except RunError as error:
            errors.append(f"{place}: {error}")
            continue
        if job.spec.image in named_files.OWN_IMAGES:
            checkpoints = [run_dir / trainer_files.BEST for run_dir in (runs if step.step == "ensemble" else runs[:1])]
            damaged += [f"{place}: {path}: {why}" for path in checkpoints if (why := named_files.wrong(path))]
    if errors:
        raise JobError(in_order([*errors, *damaged]))
    if damaged:
        raise DamagedFileError(in_order(damaged))


def _valid_steps(job: Job) -> list[tuple[int, StepSpec]]:
    """The steps with their places in `after`. If one has an error, the job has none: then those that are valid."""
    if job.spec.after:
        return list(enumerate(job.spec.after))
    listed = job.document.content.get("after")
    valid = []
    for index, item in enumerate(listed if isinstance(listed, list) else ()):
        with suppress(ValueError):
            valid.append((index, StepSpec.model_validate(item)))
    return valid
