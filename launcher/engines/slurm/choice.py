"""Resources of Slurm's nodes for a job, and how its runs are executed there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launcher.base.errors import EngineError, JobError, RefusedError, RunError
from launcher.engines.base import Choice, Engine, Want
from launcher.engines.docker import client, images
from launcher.engines.docker.engine import OWN
from launcher.engines.slurm import calls
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm.calls import SlurmError
from launcher.engines.slurm.section import SlurmSpec
from launcher.host import checks
from launcher.host.machine import Gpu, Machine
from launcher.job.spec import Job
from launcher.record.request import RunRequest
from trainer.base.errors import EXIT_USAGE


def machine(spec: SlurmSpec) -> Machine:
    """The largest node of the partition, by its GPUs. Raises SlurmError.

    Slurm does not report the memory of a GPU. `--machine FILE` can give it.
    """
    nodes = calls.nodes(spec.partition)
    known = nodes if spec.partition else [node for node in nodes if node.default] or nodes
    if not known:
        raise SlurmError(f"Slurm has no nodes{f' in partition {spec.partition}' if spec.partition else ''}")
    best = max(known, key=lambda node: (node.gpus, node.cpus, node.memory))
    name = f"Slurm partition {best.partition}, {len(known)} node{'s' * (len(known) > 1)}"
    return Machine(name, best.cpus, best.memory, tuple(Gpu(index) for index in range(best.gpus)), declared=True)


def offer(engine: Engine, want: Want, spec: SlurmSpec) -> Choice:
    """Slurm, with the resources of its nodes or of `--machine`. Raises RunError, and JobError for a field that Slurm
    does not support."""
    job = want.job
    if want.gpus is not None:
        raise RefusedError("--gpus does not work with slurm, which chooses GPUs itself; use resources.gpus", EXIT_USAGE)
    offered = want.host() if want.machine else machine(spec)
    if job.spec.resources.share_gpu:
        place = job.document.place(("resources", "share_gpu"))
        raise JobError(f"{place}: resources.share_gpu: Slurm gives each run whole GPUs; remove this field")
    how = "jobs of Slurm"
    if spec.runtime == "native":
        missing = checks.missing_packages() if not spec.python else []
        if missing:
            raise RunError(
                f"runs need packages that are not installed: {', '.join(missing)}\ninstall them: {checks.INSTALL}; or "
                "set the nodes' Python with slurm.python; or use containers: slurm.runtime=docker"
            )
        return Choice(engine, offered, f"{how}, native processes")
    wants_gpus = bool(offered.gpus) and job.spec.resources.gpus != 0
    try:
        named = images.default_tag(job.spec.image) if job.spec.image in OWN else job.spec.image
        image = images.resolve(client.connect(timeout=5), named, wants_gpus)
    except EngineError as error:
        name = image_name(job.spec.image, wants_gpus)
        note = f"note: each node uses its own image {name}, unchecked here ({error})"
        return Choice(engine, offered, f"{how}, containers of {name}", None, [note], contained=True)
    warning = images.stale_warning(image)
    said = f"{how}, containers of {image.name}"
    return Choice(engine, offered, said, image, [warning] if warning else [], contained=True)


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
    """Raises JobError if Slurm refuses the request of a run."""
    section = spec.model_dump(exclude_none=True)
    for sbatch_words in dict.fromkeys(slurm_request.words(request, section) for request in requests):
        try:
            calls.check(sbatch_words)
        except SlurmError as error:
            raise JobError(f"{job.document.place(('slurm',))}: Slurm refuses the request: {error}") from None
