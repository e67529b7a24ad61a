"""Resources of Slurm's nodes for a job, and how its runs are executed there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from launcher.base.errors import EngineError, JobError, RefusedError, RunError
from launcher.base.sizes import show_duration, typed_duration
from launcher.engines.base import Choice, Engine, Want
from launcher.engines.docker import client, images
from launcher.engines.docker.engine import OWN
from launcher.engines.slurm import calls
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm.calls import Node, SlurmError
from launcher.engines.slurm.section import SlurmSpec
from launcher.engines.slurm.variables import OF_FIELD, chosen, ignored
from launcher.host import checks
from launcher.host.machine import Gpu, Machine
from launcher.job.spec import Job
from launcher.record.request import RunRequest
from trainer.base.errors import EXIT_USAGE


def machine(spec: SlurmSpec, known: Sequence[Node]) -> Machine:
    """The largest of these nodes of the partition, by its GPUs. Raises SlurmError if there is none.

    Slurm does not report the memory of a GPU. `--machine FILE` can give it.
    """
    if not known:
        raise SlurmError(f"Slurm has no nodes{f' in partition {spec.partition}' if spec.partition else ''}")
    best = max(known, key=lambda node: (node.gpus, node.cpus, node.memory))
    name = f"Slurm partition {best.partition}, {len(known)} node{'s' * (len(known) > 1)}"
    return Machine(name, best.cpus, best.memory, tuple(Gpu(index) for index in range(best.gpus)), declared=True)


def _nodes(spec: SlurmSpec, required: bool) -> list[Node]:
    try:
        return calls.of_partition(calls.nodes(spec.partition), spec.partition)
    except SlurmError:
        if required:
            raise
        return []


def offer(engine: Engine, want: Want, spec: SlurmSpec) -> Choice:
    """Slurm, with the resources of its nodes or of `--machine`. Completes the section with sbatch's variables. Raises
    RunError, and JobError for a field that Slurm does not support."""
    job = want.job
    if want.gpus is not None:
        raise RefusedError("--gpus does not work with slurm, which chooses GPUs itself; use resources.gpus", EXIT_USAGE)
    clusters = os.environ.get("SLURM_CLUSTERS", "")
    if "," in clusters or clusters == "all":
        raise RefusedError(f"SLURM_CLUSTERS={clusters} names several clusters; name one", EXIT_USAGE)
    notes = read_variables(spec, os.environ)
    nodes = _nodes(spec, required=not want.machine)
    offered = want.host() if want.machine else machine(spec, nodes)
    if job.spec.resources.share_gpu:
        place = job.document.place(("resources", "share_gpu"))
        raise JobError(f"{place}: resources.share_gpu: Slurm gives each run whole GPUs; remove this field")
    notes += check_time(job, spec, nodes)
    how = "jobs of Slurm"
    if spec.runtime == "native":
        missing = checks.missing_packages() if not spec.python else []
        if missing:
            raise RunError(
                f"runs need packages that are not installed: {', '.join(missing)}\ninstall them: {checks.INSTALL}; or "
                "set the nodes' Python with slurm.python; or use containers: slurm.runtime=docker"
            )
        return Choice(engine, offered, f"{how}, native processes", warnings=notes)
    wants_gpus = bool(offered.gpus) and job.spec.resources.gpus != 0
    try:
        named = images.default_tag(job.spec.image) if job.spec.image in OWN else job.spec.image
        image = images.resolve(client.connect(timeout=5), named, wants_gpus)
    except EngineError as error:
        name = image_name(job.spec.image, wants_gpus)
        note = f"note: each node uses its own image {name}, unchecked here ({error})"
        return Choice(engine, offered, f"{how}, containers of {name}", None, [*notes, note], contained=True)
    notes += [warning] if (warning := images.stale_warning(image)) else []
    return Choice(engine, offered, f"{how}, containers of {image.name}", image, notes, contained=True)


def read_variables(spec: SlurmSpec, variables: Mapping[str, str]) -> list[str]:
    """Set the fields that the job leaves open to the values of sbatch's variables, so that repeated runs have them,
    too. Returns notes: which variables count, and which do not."""
    notes = []
    for field, value in chosen(variables).items():
        if getattr(spec, field, None) is None:
            setattr(spec, field, value)
            notes.append(f"note: slurm.{field} is {value}, from ${OF_FIELD[field]}")
    if names := ignored(variables):
        notes.append(f"note: these variables do not apply to runs: {names}")
    return notes


def check_time(job: Job, spec: SlurmSpec, nodes: Sequence[Node]) -> list[str]:
    """Notes on time limits of the partition that end runs. Raises JobError if a run may never start because the job's
    `timeout:` is longer."""
    limits = {node.partition: node.longest for node in nodes}
    if not limits:
        return []
    where = f"partition {' and '.join(limits)}"
    longest = None if None in limits.values() else max(limit for limit in limits.values() if limit is not None)
    timeout = job.spec.timeout
    if timeout is not None and longest is not None and timeout > longest:
        said = f"{show_duration(timeout)} is longer than the limit of {where}, {show_duration(longest)}"
        fix = f"use timeout: {typed_duration(longest)} or less, or another partition{_longer(timeout)}"
        if spec.qos is None:
            raise JobError(f"{job.document.place(('timeout',))}: timeout: {said}; {fix}")
        return [f"note: timeout: {said}; if the QOS {spec.qos} does not allow more, runs wait for ever; {fix}"]
    usual = [node.usual for node in nodes if node.usual is not None]
    ends = min(usual) if usual else longest
    if ends is None or timeout is not None:
        return []
    default = "default time" if usual else "time limit"
    return [f"note: Slurm ends runs after {show_duration(ends)}, the {default} of {where}; the job has no timeout"]


def _longer(timeout: float) -> str:
    """The partitions that allow this time, as a part of a sentence."""
    with suppress(SlurmError):
        listed = calls.nodes()
        names = sorted({node.partition for node in listed if node.longest is None or node.longest >= timeout})
        return f" ({', '.join(names)})" if names else ""
    return ""


def image_name(image: str, gpus: bool) -> str:
    """The name of the job's `image:` on nodes, if no engine here knows it."""
    own = ("cuda" if gpus else "cpu") if image == "auto" else image
    return images.default_tag(own) if own in OWN else own


def named(requests: Sequence[RunRequest], job: Job, choice: Choice) -> list[RunRequest]:
    """The requests for nodes. An image that is known only by its name counts as a trainer version of its own."""
    if not choice.contained or choice.image is not None:
        return list(requests)
    name = image_name(job.spec.image, bool(choice.machine.gpus) and job.spec.resources.gpus != 0)
    return [dataclasses.replace(request, image=name, code=name if request.code else "") for request in requests]


def check(requests: Sequence[RunRequest], job: Job, spec: SlurmSpec) -> None:
    """Raises JobError if Slurm refuses the request of a run, or of the small job after the runs."""
    section, longest = spec.model_dump(exclude_none=True), calls.longest(spec.partition)
    all_words = [slurm_request.words(request, section, longest) for request in requests]
    settling = [tuple(slurm_request.settling_words(section, longest))] if requests else []
    for sbatch_words in dict.fromkeys([*all_words, *settling]):
        try:
            calls.check(sbatch_words)
        except SlurmError as error:
            what = "the small job after the runs" if sbatch_words in settling else "the request"
            raise JobError(f"{job.document.place(('slurm',))}: Slurm refuses {what}: {error}") from None
