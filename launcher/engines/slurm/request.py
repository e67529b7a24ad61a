"""Requests to Slurm for the runs of a submission: sbatch's words, and the grouping into job arrays. Pure functions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.base.sizes import GIB
from launcher.record.request import RunRequest

WARNING = 60
"""Slurm sends SIGTERM this many seconds before a time limit, or up to 60 s earlier."""
MARGIN = 150
"""Slurm's time limit is this many seconds later than the run's, so that `launcher exec` ends the run and knows why."""
SETTLING = ("--cpus-per-task=1", f"--mem={GIB // 2**20}M", "--requeue")
"""Resources of the small job that runs after the others."""
SETTLING_MINUTES = 15
"""Its time limit, if the partition allows that."""
OF_SETTLING = ("partition", "account", "qos", "reservation", "constraint", "wckey")
"""Options of the job file that also apply to the small job."""
OWN = ("runtime", "python", "gpu_type")
"""Fields of `slurm:` that are not options of sbatch."""
_RESOURCES = "use resources.{} instead"
_ITSELF = "the launcher sets it"
MANAGED = {
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
                    "use resources.gpus instead (and slurm.gpu_type for a type of GPU)"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), _RESOURCES.format("memory")),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), _RESOURCES.format("cpus")),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket",
                     "nodefile"), "a run is one process on one node"),
    "clusters": "set SLURM_CLUSTERS in the environment instead, so that all of Slurm's commands ask the same cluster",
    **dict.fromkeys(("time", "time-min"), "use timeout instead"),
    **dict.fromkeys(("dependency", "kill-on-invalid-dep"), "use after or follows instead"),
    **dict.fromkeys(("job-name", "comment"), "use name instead"),
    **dict.fromkeys(("export", "export-file", "get-user-env"), "use env or secrets instead"),
    **dict.fromkeys(
        ("array", "requeue", "no-requeue", "signal", "output", "error", "input", "open-mode", "chdir", "parsable",
         "wrap", "test-only", "wait", "quiet", "hold", "uid", "gid"), _ITSELF),
    **dict.fromkeys(("help", "usage", "version"), "it is not an option of a job"),
}  # fmt: skip
"""Options of sbatch that a job file must not have, and the fields to use instead."""


def option_words(options: Mapping[str, Any], only: Sequence[str] | None = None) -> list[str]:
    """Options of the job file as sbatch's words: true becomes a bare flag, false and null are omitted."""
    words = []
    for name, value in options.items():
        if name in OWN or value in (None, False) or (only is not None and name not in only):
            continue
        flag = "--" + name.replace("_", "-")
        words.append(flag if value is True else f"{flag}={value}")
    return words


def words(request: RunRequest, options: Mapping[str, Any], longest: float | None = None) -> tuple[str, ...]:
    """sbatch's words for the needs of one run. Runs with equal words become one job array. `longest`: the partition's
    limit in seconds."""
    resources = request.resources
    sbatch_words = ["--nodes=1", "--ntasks=1"]
    if resources.gpus:
        kind = f"{options['gpu_type']}:" if options.get("gpu_type") else ""
        sbatch_words.append(f"--gres=gpu:{kind}{resources.gpus}")
    if resources.memory:
        sbatch_words.append(f"--mem={math.ceil(resources.memory / 2**20)}M")
    if resources.cpus:
        sbatch_words.append(f"--cpus-per-task={math.ceil(resources.cpus)}")
    if request.timeout:
        most = longest if longest is not None and request.timeout <= longest else None  # else its QOS allows more
        sbatch_words.append(time_word(math.ceil((request.timeout + MARGIN) / 60), most))
    # B: signal only the batch process, `launcher exec`, which passes the signal on and records why the run ended.
    return (*sbatch_words, "--requeue", f"--signal=B:TERM@{WARNING}", *option_words(options))


def time_word(minutes: int, longest: float | None) -> str:
    """A time limit in minutes, or the partition's limit (in seconds) if that is shorter."""
    return f"--time={minutes if longest is None else max(1, min(minutes, int(longest // 60)))}"


def settling_words(options: Mapping[str, Any], longest: float | None) -> list[str]:
    """sbatch's words for the small job."""
    return [*SETTLING, time_word(SETTLING_MINUTES, longest), *option_words(options, OF_SETTLING)]


def begin_words(wait: float) -> list[str]:
    """sbatch's words for a start after `wait` seconds."""
    return [f"--begin=now+{round(wait)}"] if wait else []


def cut(names: Sequence[str], size: int) -> list[list[str]]:
    """The runs in parts of at most `size`."""
    return [list(names[first : first + size]) for first in range(0, len(names), size)]


def array_word(count: int, max_parallel: int | None) -> str:
    """The array's tasks, and how many of them may run at once."""
    throttle = f"%{max_parallel}" if max_parallel and max_parallel < count else ""
    return f"--array=0-{count - 1}{throttle}"


def run_script(submission: Path, number: str, python: str) -> str:
    """The script of each task: executes the run and attempt on its line of the .tasks file."""
    folder = shlex.quote(str(submission))
    return f"""#!/bin/sh
# Task N of this job executes the run on line N + 1 of {number}.tasks.
line=$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {folder}/slurm/{number}.tasks)
test -n "$line" || exit 78
exec {shlex.quote(python)} -m launcher exec {folder}/"${{line% *}}" --attempt "${{line##* }}" --slurm {number}
"""


def settle_script(submission: Path, python: str) -> str:
    """The script of the small job, which records and repeats dead runs, and continues the submission."""
    return f"#!/bin/sh\nexec {shlex.quote(python)} -m launcher advance {shlex.quote(str(submission))}\n"
