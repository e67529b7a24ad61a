"""Calls of Slurm's commands. The state comes from `squeue --json`, and from `sacct` if it answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines.slurm import squeue

PATIENCE = 60
"""Timeout of a Slurm command in seconds: a controller that restarts answers late."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
"""Variables of a Slurm job that tell Slurm's commands where the controller is."""
OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


class SlurmError(RunError):
    """Slurm refuses a request, or does not answer."""


def environment() -> dict[str, str]:
    """This process's variables without those of a surrounding Slurm job, which sbatch would pass on."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not (name.startswith("SLURM_") or name in OF_A_JOB)
    }
    return {**variables, "SLURM_BITSTR_LEN": "0"}  # list all tasks of arrays


def call(*command: str, stdin: str | None = None) -> str:
    """The output of a Slurm command. Raises SlurmError with the command's message."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", errors="surrogateescape", env=environment(),
            timeout=PATIENCE,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not installed; install Slurm's commands (apt-get install slurm-client), "
            "or give --host with a machine that has them"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"Slurm does not answer: no output of {command[0]} for {PATIENCE} s; try: scontrol ping"
        ) from None
    if done.returncode:
        raise SlurmError(_said(command[0], done.stderr or done.stdout) or f"{command[0]}: code {done.returncode}")
    return done.stdout


def _said(command: str, text: str) -> str:
    """Slurm's message on one line, without the lines that only refer to the help."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    words = "; ".join(re.sub(rf"^({command}|slurm_load_\w+)?(: )?(error|fatal): ", "", line) for line in lines)
    return f"{command}: {words}"[:500] if words else ""


def installed() -> bool:
    """Whether Slurm's commands are installed."""
    return shutil.which("sbatch") is not None


def snapshot() -> squeue.Snapshot:
    """Slurm's jobs now. Raises SlurmError."""
    try:
        text = call("squeue", "--json", "--states=all")
    except SlurmError as error:
        if "json" not in str(error):
            raise
        raise SlurmError(
            f"{error}; the launcher needs Slurm 21.08 or newer, built with JSON support (squeue --json)"
        ) from None
    try:
        return squeue.parse(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SlurmError(f"squeue --json: unknown format: {error}") from None


def submit(words: Sequence[str], script: Path, folder: Path) -> int:
    """Submit the script with sbatch. Returns the job's number. Raises SlurmError."""
    text = call("sbatch", "--parsable", f"--chdir={folder}", *words, str(script))
    number = (text.split() or [""])[-1].split(";")[0]
    if not number.isdigit():  # the job may exist anyway: the next pass finds it by its name
        raise SlurmError(f"sbatch printed no job number, but: {' '.join(text.split())[:300] or 'nothing'}")
    return int(number)


@dataclass(frozen=True)
class Node:
    """A node in one of its partitions. `memory` in bytes."""

    partition: str
    default: bool
    gpus: int
    cpus: float
    memory: int


def nodes(partition: str | None = None) -> list[Node]:
    """The nodes of a partition, or of all. Raises SlurmError."""
    where = [f"--partition={partition}"] if partition else []
    lines = call("sinfo", "-h", "-N", *where, "-o", "%N|%G|%c|%m|%P").splitlines()
    return [listed for line in lines if (listed := node(line))]


def node(line: str) -> Node | None:
    """The node of a line of sinfo's `%N|%G|%c|%m|%P`; None for other lines.

    >>> node("n1|gpu:a100:4(S:0-1),shard:8|64|512000|gpu*").gpus
    4
    """
    parts = line.strip().split("|")
    if len(parts) != 5:
        return None
    gpus = sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", parts[1]))
    cpus, memory = (int(number[0]) if (number := re.match(r"\d+", text)) else 0 for text in parts[2:4])
    return Node(parts[4].rstrip("*"), parts[4].endswith("*"), gpus, float(cpus), memory * 2**20)


def check(words: Sequence[str]) -> None:
    """Let Slurm check a request without queueing it. Raises SlurmError if it refuses."""
    call("sbatch", "--test-only", *words, stdin="#!/bin/sh\n")


def cancel(keys: Sequence[str]) -> None:
    """Call scancel for jobs, which may have ended meanwhile. Raises SlurmError if Slurm does not answer."""
    for first in range(0, len(keys), 200):
        call("scancel", "--quiet", *keys[first : first + 200])


def set_dependency(job: int, text: str) -> bool:
    """Make a waiting job wait for others. Returns False if it does not wait any more."""
    try:
        call("scontrol", "update", f"JobId={job}", f"Dependency={text}")
    except SlurmError:
        if snapshot().pending(job):
            raise
        return False
    return True


@cache
def config() -> Mapping[str, str]:
    """`scontrol show config`. Raises SlurmError."""
    lines = call("scontrol", "show", "config").splitlines()
    return {name.strip(): value.strip() for name, sign, value in (line.partition("=") for line in lines) if sign}


def max_array() -> int:
    """Largest number of tasks in an array: the indices are below MaxArraySize."""
    digits = re.match(r"\d+", config().get("MaxArraySize", ""))
    return int(digits[0]) if digits else 1001


def accounted(key: squeue.Key) -> squeue.SlurmJob | None:
    """sacct's record of a job that Slurm itself has forgotten; None without accounting."""
    try:
        text = call("sacct", "-n", "-X", "-P", f"--jobs={key}", "--format=State,ExitCode,NodeList")
    except SlurmError:
        return None
    for line in text.splitlines()[:1]:
        state, code, nodes = (*line.split("|"), "", "", "")[:3]
        exit_code, _, signal = code.partition(":")
        return squeue.SlurmJob(
            key.job, states=frozenset([state.split()[0]] if state else []), nodes=nodes,
            exit_code=int(exit_code or 0), signal=int(signal or 0),
        )  # fmt: skip
    return None
