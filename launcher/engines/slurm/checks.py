"""Slurm's checks of `launcher doctor`: whether it answers, its nodes, and settings that matter to runs; inside a job,
also the GPUs of the job."""

from __future__ import annotations

import os
import re

from launcher.base.sizes import show_duration, show_size
from launcher.engines.slurm import calls, variables
from launcher.engines.slurm.calls import Node, SlurmError
from launcher.host.checks import Check
from trainer.base.plural import counted

KILL_WAIT = 30
"""Seconds from Slurm's SIGTERM to its SIGKILL that a run needs for its checkpoint."""


def examine() -> list[Check]:
    """The checks; empty without Slurm."""
    if not calls.installed():
        return []
    try:
        version = calls.call("sbatch", "--version").strip()
        config = calls.config()
        nodes = calls.nodes()
        calls.check_answer()
    except SlurmError as error:
        said = str(error)
        if " " not in (command := said.partition(": ")[0]):  # Slurm's commands say every step that failed
            said = f"{command}: {said.removeprefix(f'{command}: ').rpartition('; ')[2]}"
        return [Check("slurm", "note", said, "scontrol ping; set SLURM_CONF to the cluster's slurm.conf")]
    size = calls.max_array()
    return [
        Check("slurm", "ok", f"{version}, cluster {config.get('ClusterName', '?')}, arrays of {size} tasks"),
        *_partitions(nodes),
        *_variables(),
        *_settings(config.get("KillWait", ""), config.get("JobRequeue", ""), config.get("TaskPlugin", "")),
        *_here(),
    ]


def _partitions(nodes: list[Node]) -> list[Check]:
    checks = []
    for name in sorted({node.partition for node in nodes}):
        its = [node for node in nodes if node.partition == name]
        gpus, cpus, memory = (max(getattr(node, field) for node in its) for field in ("gpus", "cpus", "memory"))
        limit = f", runs of at most {show_duration(its[0].longest)}" if its[0].longest is not None else ""
        size = f"{counted(gpus, 'GPU')}, {counted(cpus, 'core')}, {show_size(memory)}"
        said = f"{name}: {counted(len(its), 'node')} of up to {size}{limit}"
        ask = f"srun -p {name}{' --gres=gpu:1' if gpus else ''} launcher doctor"
        checks.append(Check("partition", "ok", f"{said}; to check a node: {ask}"))
    return checks


def _variables() -> list[Check]:
    checks = []
    if fields := variables.chosen(os.environ):
        said = ", ".join(f"slurm.{field} is {value}" for field, value in fields.items())
        names = ", ".join(variables.OF_FIELD[field] for field in fields)
        checks.append(Check("sbatch", "ok", f"{said} if the job names none (from {names})"))
    if names := variables.ignored(os.environ):
        checks.append(Check("sbatch", "note", f"these variables do not apply to runs: {names}", ""))
    return checks


def _settings(kill_wait: str, requeue: str, plugin: str) -> list[Check]:
    checks = []
    seconds = re.match(r"\d+", kill_wait)
    if seconds and int(seconds[0]) < KILL_WAIT:
        said = f"KillWait is {kill_wait}: a run that Slurm ends may have too little time to save last.ckpt"
        checks.append(Check("slurm.conf", "note", said, f"KillWait={KILL_WAIT}"))
    if requeue == "0":
        checks.append(Check("slurm.conf", "note", "JobRequeue is 0: sites may refuse --requeue", "JobRequeue=1"))
    if plugin and "cgroup" not in plugin:
        said = "TaskPlugin has no cgroup: the memory limit of native runs is not enforced"
        checks.append(Check("slurm.conf", "note", said, "TaskPlugin=task/cgroup, ConstrainRAMSpace=yes in cgroup.conf"))
    return checks


def _here() -> list[Check]:
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return []
    gpus = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES") or "none"
    return [Check("slurm job", "ok", f"{job} on node {os.environ.get('SLURMD_NODENAME', '?')}; its GPUs: {gpus}")]
