"""Calls of Slurm's commands. The state comes from squeue and scontrol, and from sacct if it answers. On a large cluster
an answer about all jobs is expensive, so only the submission's own jobs are asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launcher.base.errors import RunError
from launcher.engines.slurm import squeue, variables
from trainer.base.brief import in_brief

PATIENCE = 60
"""Timeout of a Slurm command in seconds: a controller that restarts answers late."""
FEW = 8
"""Up to this number of jobs are asked for one by one: the controller looks up a single job or array, but sends all jobs
of the cluster if squeue asks for several."""
MANY = 1000
"""Number of jobs in one call of squeue otherwise."""
LISTING = ("squeue", "--all", "--states=all", f"--format={squeue.FORMAT}")
"""`--all`: also of partitions that are hidden."""


class SlurmError(RunError):
    """Slurm refuses a request, or does not answer."""


def call(*command: str, stdin: str | None = None) -> str:
    """The output of a Slurm command. Raises SlurmError with the command's message."""
    return _run(*command, stdin=stdin).stdout


def _run(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=variables.for_commands(os.environ),
            timeout=PATIENCE,
        )
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
        raise SlurmError(_message(command[0], done.stderr or done.stdout) or f"{command[0]}: code {done.returncode}")
    return done


def _message(command: str, text: str) -> str:
    """Slurm's message on one line, without the lines that only refer to the help."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    words = "; ".join(re.sub(rf"^({command}|slurm_load_\w+)?(: )?(error|fatal): ", "", line) for line in lines)
    return in_brief(f"{command}: {words}", 500) if words else ""


def installed() -> bool:
    """Whether Slurm's commands are installed."""
    return shutil.which("sbatch") is not None


def jobs(numbers: Iterable[int], user: int | None = None) -> squeue.Snapshot:
    """Slurm's records of these jobs and all tasks of these arrays. `user`: the uid that submitted them. Raises
    SlurmError."""
    ordered = sorted(set(numbers))
    size = 1 if len(ordered) <= FEW else MANY
    found: list[squeue.SlurmJob] = []
    for first in range(0, len(ordered), size):
        named = ",".join(map(str, ordered[first : first + size]))
        found += _list(user, f"--jobs={named}")
    return squeue.snapshot(found)


def named_jobs(names: Sequence[str]) -> list[squeue.SlurmJob]:
    """Jobs of this user with one of these names. Raises SlurmError."""
    return _list(os.getuid(), f"--name={','.join(names)}") if names else []


def _list(user: int | None, which: str) -> list[squeue.SlurmJob]:
    try:
        done = _run(*LISTING, *([f"--user={user}"] if user is not None else []), which)
        if "Invalid user" in done.stderr and which.startswith("--jobs="):  # on this host; squeue then lists no job
            done = _run(*LISTING, which)
        if "Invalid user" in done.stderr:
            raise SlurmError(_message("squeue", done.stderr))
    except SlurmError as error:
        if "Invalid job id" in str(error):  # it is the only one, and Slurm does not know it any more
            return []
        raise
    try:
        return list(squeue.parse(done.stdout).jobs)
    except ValueError as error:
        raise SlurmError(f"squeue: unknown format: {error}") from None


def detail(key: squeue.Key, name: str = "", folder: str = "") -> squeue.Detail | None:
    """One job in detail, also after its end; None if neither Slurm nor its accounting knows it. With a name and a
    folder: None if it has neither, so that it is another job of the same number. Raises SlurmError."""
    try:
        text = call("scontrol", "--all", "--oneliner", "show", "job", str(key))
        job = squeue.detail(text)
        return job if not name or f" JobName={name} " in text or f" WorkDir={folder} " in text else None
    except ValueError as error:
        raise SlurmError(f"scontrol show job: unknown format: {error}") from None
    except SlurmError as error:
        if "Invalid job id" not in str(error) and "not found" not in str(error):
            raise
        return _accounted(key)


def check_answer() -> None:
    """Raises SlurmError if the state of a job could not be read."""
    named_jobs(["-"])


def submit(words: Sequence[str], script: Path, folder: Path) -> int:
    """Submit the script with sbatch. Returns the job's number. Raises SlurmError."""
    text = call("sbatch", "--parsable", f"--chdir={folder}", *words, str(script))
    numbers = re.findall(r"^(\d+)(?:;\S*)?$", text, re.MULTILINE)  # a wrapper of the site may print more lines
    if not numbers:  # the job may exist anyway: the next pass finds it by its name
        raise SlurmError(f"sbatch printed no job number, but: {in_brief(text, 300) or 'nothing'}")
    return int(numbers[-1])


@dataclass(frozen=True)
class Node:
    """A node in one of its partitions. `memory` in bytes; the partition's longest and default time of a job in
    seconds, None without a limit."""

    partition: str
    default: bool
    gpus: int
    cpus: float
    memory: int
    longest: float | None = None
    usual: float | None = None


def nodes(partition: str | None = None) -> list[Node]:
    """The nodes of a partition, or of all. Raises SlurmError."""
    where = [f"--partition={partition}"] if partition else []
    text = call("sinfo", "-h", "-N", *where, "-o", "%N|%G|%c|%m|%P|%l|%L")
    return [listed for line in text.splitlines() if (listed := node(line))]


def node(line: str) -> Node | None:
    """The node of a line of sinfo's `%N|%G|%c|%m|%P|%l|%L`; None for other lines.

    >>> node("n1|gpu:a100:4(S:0-1),shard:8|64|512000|gpu*|2:00:00|n/a").gpus
    4
    """
    parts = line.strip().split("|")
    if len(parts) != 7:
        return None
    gpus = sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", parts[1]))
    cpus, memory = (int(number[0]) if (number := re.match(r"\d+", text)) else 0 for text in parts[2:4])
    name, default = parts[4].rstrip("*"), parts[4].endswith("*")
    longest, usual = (squeue.seconds(text) for text in parts[5:])
    return Node(name, default, gpus, float(cpus), memory * 2**20, longest, usual)


def of_partition(listed: Sequence[Node], partition: str | None) -> list[Node]:
    """The nodes that a job of this partition may use; None: of Slurm's default partition, if there is one."""
    return list(listed) if partition else [node for node in listed if node.default] or list(listed)


@cache
def longest(partition: str | None) -> float | None:
    """The longest time of a job in the partition (or one of several), in seconds; None without a limit. Does not ask
    for nodes, because every task that fails calls this. Raises SlurmError."""
    return squeue.longest(call("scontrol", "--all", "--oneliner", "show", "partition"), partition)


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
        if jobs([job]).pending(job):
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


def _accounted(key: squeue.Key) -> squeue.Detail | None:
    """sacct's record of a job that Slurm itself has forgotten; None without accounting."""
    try:
        text = call("sacct", "-n", "-X", "-P", f"--jobs={key}", "--format=State,ExitCode,Timelimit,Partition,NodeList")
    except SlurmError:
        return None
    for line in text.splitlines()[:1]:
        state, code, limit, partition, nodes = (*line.split("|"), "", "", "", "", "")[:5]
        exit_code, _, signal = code.partition(":")
        if state and state.split()[0] in squeue.OVER:
            return squeue.Detail(
                frozenset([state.split()[0]]), int(exit_code or 0), int(signal or 0), nodes, partition,
                squeue.seconds(limit),
            )  # fmt: skip
    return None
