"""Environment variables that change what Slurm's commands do. The launcher removes them from the environment of these
commands. Those that choose where and for whom runs are executed become options of the submission."""

from __future__ import annotations

from collections.abc import Mapping

KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
"""Variables that tell Slurm's commands where the controller is."""
OF_COMMANDS = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_", "SACCT_", "SRUN_", "SALLOC_")
"""Beginnings of the variables of a surrounding job, and of those that a site or user sets as options of commands."""
OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
CHOICES = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_WCKEY": "wckey",
}
"""Variables of sbatch that count if the job file and the command line leave the field open, and the field."""
OF_FIELD = {field: name for name, field in CHOICES.items()}
INSTEAD = {
    "timeout": ("SBATCH_TIMELIMIT",),
    "resources.memory": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "resources.cpus": ("SBATCH_CPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"),
    "resources.gpus": (
        "SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GPUS_PER_SOCKET", "SBATCH_GRES"
    ),
    "name": ("SBATCH_JOB_NAME",),
    "env": ("SBATCH_EXPORT",),
    "SLURM_CLUSTERS": ("SBATCH_CLUSTERS",),
}  # fmt: skip
"""What to use instead of other variables of sbatch."""
QUIET = ("SBATCH_DEBUG",)
"""Variables whose absence no run notices."""


def for_commands(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a Slurm command, which sbatch also hands over to the job."""
    kept = {
        name: value
        for name, value in variables.items()
        if name in KEPT or not (name.startswith(OF_COMMANDS) or name in OF_A_JOB)
    }
    return {**kept, "SLURM_BITSTR_LEN": "0"}  # list all tasks of arrays


def chosen(variables: Mapping[str, str]) -> dict[str, str]:
    """Fields of the section `slurm` that variables of sbatch set, by their names."""
    return {field: variables[name] for name, field in CHOICES.items() if variables.get(name)}


def ignored(variables: Mapping[str, str]) -> str:
    """Which variables of sbatch do not count, with the fields to use instead; empty if there are none."""
    fields = {name: field for field, names in INSTEAD.items() for name in names}
    names = sorted(
        name for name in variables if name.startswith("SBATCH_") and name not in CHOICES and name not in QUIET
    )
    return ", ".join(f"{name} (use {fields[name]})" if name in fields else name for name in names)
