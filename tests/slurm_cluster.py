"""A Slurm of the tests' own: munge, a controller and two nodes on this host, started and stopped here, on ports and in
folders of their own. GPUs are device nodes that nothing is behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "build" / "test-slurm"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
InactiveLimit=0
KillWait=30
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=8 RealMemory=16000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=8 RealMemory=16000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1
PartitionName=urgent Nodes=n1,n2 PriorityTier=10
PartitionName=short Nodes=n1,n2 PriorityTier=1 MaxTime=1
PartitionName=cheap Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL
"""


def missing() -> str | None:
    """What this machine lacks for a Slurm of the tests' own."""
    if os.getuid() != 0:
        return "root is needed to start Slurm's daemons"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return (
        f"not installed: {', '.join(absent)} (apt-get install munge slurmctld slurmd slurm-client)" if absent else None
    )


class Slurm:
    """Two nodes, n1 and n2, each with two GPUs; partitions main and urgent, which preempts main by requeueing; short,
    with a limit of a minute; and cheap, whose jobs are cancelled when urgent needs their nodes."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.watch: subprocess.Popen[bytes] | None = None
        """Ends everything when this process has died, however."""

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that use it."""
        return {"SLURM_CONF": str(FOLDER / "slurm.conf")}

    def start(self) -> None:
        """Start everything and wait until both nodes are idle. A former one whose tests were killed is ended first."""
        end_leftovers()
        self.watch = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm_cluster"], stdin=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
        )
        shutil.rmtree(FOLDER, ignore_errors=True)
        (FOLDER / "state").mkdir(parents=True)
        for number in range(4):
            os.mknod(FOLDER / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        ports = free_ports(3)
        host = os.uname().nodename
        known = {"folder": FOLDER, "host": host, "port": ports[0], "port1": ports[1], "port2": ports[2]}
        (FOLDER / "slurm.conf").write_text(CONF.format(**known))
        (FOLDER / "cgroup.conf").write_text("ConstrainRAMSpace=yes\nCgroupAutomount=no\n")
        gres = "".join(f"NodeName=n{n} Name=gpu File={FOLDER}/gpu[{2 * n - 2}-{2 * n - 1}]\n" for n in (1, 2))
        (FOLDER / "gres.conf").write_text(gres)
        key = FOLDER / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={FOLDER}/munge.socket",
            f"--pid-file={FOLDER}/munged.pid", f"--log-file={FOLDER}/munged.log", f"--seed-file={FOLDER}/munged.seed",
        )  # fmt: skip
        _wait((FOLDER / "munge.socket").exists, "munged")
        self._spawn("slurmctld", "-D")
        for node in ("n1", "n2"):
            self.start_node(node)
        try:
            self.wait_idle()
        except AssertionError:
            self.stop()
            raise RuntimeError((FOLDER / "slurmctld.log").read_text()[-3000:]) from None

    def wait_idle(self) -> None:
        """Until both nodes have nothing to do."""
        _wait(lambda: self.node_states() == {"n1": "IDLE", "n2": "IDLE"}, "two idle nodes", 60)

    def start_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node)

    def _spawn(self, *command: str) -> None:
        name = command[-1] if command[0] == "slurmd" else command[0]
        with (FOLDER / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """End a node's daemon (`n1` or `n2`) as a crash would. What its jobs have started goes on. The controller would
        notice by itself, within five minutes."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def stop(self) -> None:
        """Cancel what is left and end every daemon, and what killed nodes have left running."""
        if "slurmctld" in self.processes:
            self.clear()
        for name in ("n1", "n2", "slurmctld", "munged"):
            process = self.processes.pop(name, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        end_leftovers()
        if self.watch is not None:
            self.watch.communicate()

    def clear(self) -> None:
        """Cancel all jobs, and wait until none is left."""

        def empty() -> bool:
            self.run("scancel", "--full", "--signal=KILL", "--user=root")
            self.run("scancel", "--user=root")
            return not self.busy()

        _wait(empty, "an empty queue", 60)

    def busy(self) -> bool:
        """Whether jobs are queued or under way."""
        return bool(self.run("squeue", "-h").stdout.strip())

    def push(self, job: str) -> None:
        """Let a requeued job begin now, on any node: Slurm itself holds it back for two minutes."""

        def pushed() -> bool:
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now", "ReqNodeList=")
            shown = self.run("scontrol", "show", "job", job).stdout
            return "PENDING" not in shown or ("BeginTime" not in shown and "ReqNodeList=(null)" in shown)

        _wait(pushed, f"job {job} to be let go", 60)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines()
        return {line.split()[0]: line.split()[1].upper() for line in lines}

    def jobs(self) -> list[dict[str, Any]]:
        """What `squeue --json` says."""
        found: list[dict[str, Any]] = json.loads(self.run("squeue", "--json").stdout)["jobs"]
        return found


def leftovers() -> list[int]:
    """Processes that have a Slurm of this checkout's tests in their environment: daemons, and what jobs have started."""
    found = []
    marker = f"SLURM_CONF={FOLDER / 'slurm.conf'}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def end_leftovers() -> None:
    """Kill them, and what they have started meanwhile."""
    for _ in range(100):
        pids = leftovers()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Below those that the system hands out, so that nobody gets one by chance before the daemons have it."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 12_000):
        with suppress(OSError), socket.socket() as each:
            each.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports")


def _wait(condition: Callable[[], Any], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the tests have ended, or died
    end_leftovers()
