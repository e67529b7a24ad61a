"""How many runs of a job start together on an idle machine: as many as the scheduler places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from launcher.host.machine import Machine
from launcher.job.expansion import Planned, default_cpus
from launcher.job.spec import Job
from launcher.record.request import RunRequest, device_need
from launcher.supervise import scheduler
from launcher.supervise.scheduler import Capacity, Demand


def demand_of(request: RunRequest) -> Demand:
    """What the scheduler has to know of a run."""
    from launcher.supervise import durations

    resources = request.resources
    return Demand(
        request.name,
        resources.gpus,
        resources.cpus or 0,
        resources.memory or 0,
        tuple(request.needs),
        gpu_memory=(device_need(request) or 0) if resources.gpus else 0,
        share=request.share_gpu,
        priority=request.priority,
        cost=durations.cost(request),
    )


def capacity_of(machine: Machine, max_parallel: int | None) -> Capacity:
    """What the scheduler has to know of a machine."""
    sizes = {gpu.label: gpu.memory for gpu in machine.gpus if gpu.memory}
    instances = frozenset(gpu.label for gpu in machine.gpus if gpu.instance is not None)
    return Capacity(machine.devices, machine.cpus, machine.memory, max_parallel, sizes, instances)


def at_once(planned: Sequence[Planned], machine: Machine, max_parallel: int | None) -> int:
    """How many training runs start together on the idle machine."""
    return _started(_trained(planned), machine, max_parallel)


def _trained(planned: Sequence[Planned]) -> list[Demand]:
    return [demand_of(p.request) for p in planned if p.request.kind == "train" and not p.why_not]


def _started(demands: Sequence[Demand], machine: Machine, max_parallel: int | None) -> int:
    return len(scheduler.choose(demands, {}, (), capacity_of(machine, max_parallel)))


def _started_if_shared(job: Job, demands: Sequence[Demand], machine: Machine) -> int:
    """How many would start with `resources.share_gpu`; 0 if the job says it already, or if the runs use no GPU."""
    resources = job.spec.resources
    gpus = demands[0].gpus if demands else 0
    if resources.share_gpu or not machine.gpus or not gpus:
        return 0
    cpus = default_cpus(machine, gpus, True) if resources.cpus == "auto" else resources.cpus
    shared = [dataclasses.replace(demand, cpus=cpus, share=True) for demand in demands]
    return _started(shared, machine, job.spec.max_parallel)


def lines(job: Job, planned: Sequence[Planned], machine: Machine) -> list[str]:
    """How many runs start together, and the words with which more would."""
    demands = _trained(planned)
    parallel = _started(demands, machine, job.spec.max_parallel)
    equal = len({demand.gpu_memory for demand in demands}) <= 1
    if equal or not job.spec.resources.share_gpu or parallel == len(demands):
        said = [f"at most {parallel} at once" if parallel > 1 else "one after another"]
    else:  # later, other runs may fit together
        said = [f"{parallel} start together; the others follow as GPU memory becomes free" if parallel > 1 else
                "one starts alone; the others follow as GPU memory becomes free"]  # fmt: skip
    more = _started_if_shared(job, demands, machine)
    if more > max(1, parallel):
        where = "this GPU" if len(machine.gpus) == 1 else f"these {len(machine.gpus)} GPUs"
        said.append(f"note: {more} fit on {where} together: --set resources.share_gpu=true")
    return said
