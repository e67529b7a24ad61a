"""Slurm's commands as this project calls them. State comes from `squeue --json`; `sacct` is asked where it answers."""

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
"""Seconds within which a command of Slurm answers: a controller that is being restarted takes its time."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
"""Of the variables that a job of Slurm has, those that tell its commands whom to talk to."""
OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


class SlurmError(RunError):
    """What Slurm refuses, or that it does not answer."""


def environment() -> dict[str, str]:
    """This process's variables without those of the job that it may itself be: sbatch would hand them on."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not (name.startswith("SLURM_") or name in OF_A_JOB)
    }
    return {**variables, "SLURM_BITSTR_LEN": "0"}  # arrays' tasks are listed whole


def call(*command: str, stdin: str | None = None) -> str:
    """What a command of Slurm prints. Raises SlurmError with its own words."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="replace", env=environment(), timeout=PATIENCE
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not installed here: Slurm's commands are needed (apt-get install slurm-client), "
            "or say --host of a machine that has them"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"Slurm does not answer: {command[0]} was silent for {PATIENCE} s") from None
    if done.returncode:
        raise SlurmError(_said(command[0], done.stderr or done.stdout) or f"{command[0]}: code {done.returncode}")
    return done.stdout


def _said(command: str, text: str) -> str:
    """Slurm's words on one line, without the lines that only point to the help."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    words = "; ".join(re.sub(rf"^({command}|slurm_load_\w+)?(: )?(error|fatal): ", "", line) for line in lines)
    return f"{command}: {words}"[:500] if words else ""


def installed() -> bool:
    """Whether Slurm's commands are there."""
    return shutil.which("sbatch") is not None


def snapshot() -> squeue.Snapshot:
    """Slurm's jobs now. Raises SlurmError."""
    try:
        text = call("squeue", "--json", "--states=all")
    except SlurmError as error:
        if "json" not in str(error):
            raise
        raise SlurmError(
            f"{error}; a Slurm is needed whose squeue prints JSON: 21.08 or newer, built with it"
        ) from None
    try:
        return squeue.parse(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SlurmError(f"squeue --json: cannot be understood: {error}") from None


def submit(words: Sequence[str], script: Path, folder: Path) -> int:
    """The number of the job that sbatch makes of the script. Raises SlurmError."""
    text = call("sbatch", "--parsable", f"--chdir={folder}", *words, str(script))
    number = (text.split() or [""])[-1].split(";")[0]
    if not number.isdigit():  # it may have a job all the same: the next look finds it by its name
        raise SlurmError(f"sbatch: said no number of a job: {' '.join(text.split())[:300] or 'nothing'}")
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
    return [found for line in lines if (found := node(line))]


def node(line: str) -> Node | None:
    """A line of sinfo's `%N|%G|%c|%m|%P`; None for what is none.

    >>> node("n1|gpu:a100:4(S:0-1),shard:8|64|512000|gpu*").gpus
    4
    """
    parts = line.strip().split("|")
    if len(parts) != 5:
        return None
    gpus = sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", parts[1]))
    cpus, memory = (int(found[0]) if (found := re.match(r"\d+", text)) else 0 for text in parts[2:4])
    return Node(parts[4].rstrip("*"), parts[4].endswith("*"), gpus, float(cpus), memory * 2**20)


def check(words: Sequence[str]) -> None:
    """Have Slurm look at a request as sbatch would, and queue nothing. Raises SlurmError where it refuses."""
    call("sbatch", "--test-only", *words, stdin="#!/bin/sh\n")


def cancel(keys: Sequence[str]) -> None:
    """scancel, for jobs that may have ended meanwhile. Raises SlurmError where Slurm does not answer."""
    for first in range(0, len(keys), 200):
        call("scancel", "--quiet", *keys[first : first + 200])


def set_dependency(job: int, text: str) -> bool:
    """Make a waiting job wait for others; False where it waits no more."""
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
    """Tasks of an array at most: its indices are below MaxArraySize."""
    digits = re.match(r"\d+", config().get("MaxArraySize", ""))
    return int(digits[0]) if digits else 1001


def accounted(key: squeue.Key) -> squeue.SlurmJob | None:
    """What sacct still knows of a job that Slurm itself has forgotten; None where there is no accounting."""
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
