"""Submissions through a real Slurm of two nodes, over a trainer that keeps the contract and takes milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.engines.slurm import board
from launcher.host import processes
from launcher.record.find import find_run
from launcher.record.journal import read_events
from launcher.record.states import ENDED
from tests.launcher.conftest import REPOSITORY, Lab, seeds, unwrapped, wait_for
from tests.slurm_cluster import Slurm
from trainer.data.drawn import write_sample_data

SMALL = "resources: {memory: 400m, cpus: 1, gpus: 1}\n"
STEPS = "after:\n  - {name: vote, step: ensemble, from: {top: 2}}\n  - {name: out, step: predict, needs: [vote]}\n"


def submit(lab: Lab, job: str, *words: str) -> Path:
    """The submission that the job became."""
    done = lab.launcher("submit", lab.job(job), "--engine", "slurm", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return lab.submission()


def events(lab: Lab, run: str) -> list[dict[str, Any]]:
    return read_events(find_run(lab.runs, run))


def running(lab: Lab, run: str) -> dict[str, Any]:
    """What is known of a run when it is under way: its trainer may begin before that is written down."""
    figures: dict[str, Any] = wait_for(
        lambda: (s := lab.status(run)).state == "running" and s.figures, f"{run} running"
    )
    return figures


def ended(lab: Lab) -> bool:
    return all(state in ENDED for state in lab.states().values())


def test_runs_have_gpus_of_their_own_stop_and_go_on_from_any_host_and_steps_come_after(
    cluster: Lab, slurm: Slurm
) -> None:
    gate = cluster.root / "gate"
    cluster.plan = {"*": {"until": str(gate), "f1": 0.5}, "seed1": {"f1": 0.9}}
    done = cluster.launcher("submit", cluster.job(seeds(5, SMALL + STEPS)), "--engine", "slurm", "--detach")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: --detach has no effect: this command returns immediately\n" in done.stdout
    directory = cluster.submission()
    wait_for(lambda: list(cluster.states().values()).count("running") == 4, "four runs")
    begun = wait_for(lambda: len(cluster.journal("begin")) == 4 and cluster.journal("begin"), "their trainers")
    names = [event["run"].partition("-")[2] for event in begun]
    places = {(cluster.status(name).figures["node"], *cluster.status(name).figures["devices"]) for name in names}
    assert places == {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}  # numbered on each node
    assert sorted(event["env"]["CUDA_VISIBLE_DEVICES"] for event in begun) == ["0", "0", "1", "1"]
    shown = cluster.launcher("status").stdout
    assert "running" in shown.splitlines()[0] and shown.count("▶ running") == 4 and shown.count("· queued") == 3
    path = cluster.environment.get("PATH")
    cluster.environment["PATH"] = "/nonexistent"  # a host that mounts the volume, and has no Slurm
    blind = cluster.launcher("resume")
    assert (
        blind.returncode == 1 and "squeue is not installed" in blind.stderr and "--runs 'runs of 50%a'" in blind.stderr
    )
    stopped = cluster.launcher("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert set(cluster.states().values()) == {"cancelled"} and len(cluster.journal("stopped")) == 4
    assert path is None and cluster.environment.pop("PATH")
    gate.touch()
    again = cluster.launcher("resume")
    assert again.returncode == 0 and "7 runs queued again" in again.stdout, again.stdout + again.stderr
    wait_for(lambda: set(cluster.states().values()) == {"succeeded"} and not slurm.busy(), "the end", 120)
    begun = cluster.journal("begin")[4:]
    argv = {event["run"].partition("-")[2]: event["argv"] for event in begun}
    assert sum(words[-1] == "resume=auto" and words[0] == "train" for words in argv.values()) == 5
    assert [event["run"] for event in begun[5:]] == ["006-vote", "007-out"]
    assert argv["vote"][:3] == ["ensemble", "--checkpoints", f"{directory}/002-seed1/best.ckpt"]
    model = f"{directory}/006-vote/ensemble.json"
    assert argv["out"] == ["predict", "--checkpoint", model, "--device", "cuda"]
    assert (cluster.runs / "champion" / "best_model.ckpt").read_bytes().endswith(b"002-seed1")
    kinds = [(batch.kind, len(batch.runs)) for batch in board.read_batches(directory)]
    assert kinds[:5] == [("runs", 5), ("after_runs", 0), ("runs", 1), ("runs", 1), ("after_steps", 0)]


def test_every_end_is_recorded_with_its_reason_and_repeated_by_the_policy(cluster: Lab, slurm: Slurm) -> None:
    gate = cluster.root / "gate"
    cluster.plan = {
        "seed0": {"f1": 0.7},
        "seed1": {"megabytes": 900},
        "seed2": {"seconds": 300},
        "seed3": {"seconds": 300},
        "seed4": {"bad_attempts": 1, "f1": 0.9},
        "seed5": {"until": str(gate), "leaves": {"metrics.json": None}},
    }
    policy = "retry: {on: [failed, lost], attempts: 2, backoff: 0}\n"
    small = "resources: {memory: 300m, cpus: 1}\n"
    directory = submit(cluster, seeds(6, small + policy + STEPS), "--partition", "main")
    array = board.read_batches(directory)[0].job
    wait_for(lambda: {"003-seed2", "004-seed3"} <= {e["run"] for e in cluster.journal("begin")}, "both")
    slurm.run("scancel", f"{array}_2")
    os.kill(running(cluster, "seed3")["exec_pid"], signal.SIGKILL)
    wait_for(lambda: cluster.states()["seed1"] == "out_of_host_memory", "no memory")
    wait_for(lambda: cluster.states()["seed2"] == "cancelled", "cancelled")
    wait_for(lambda: cluster.states()["seed4"] == "succeeded", "the second attempt, while others run")
    assert cluster.states()["vote"] == "queued"
    assert "job.yaml:3" in cluster.status("seed1").reason
    assert cluster.status("seed2").reason == "cancelled in Slurm (scancel); last.ckpt is kept"
    assert [event["state"] for event in events(cluster, "seed4")][3:5] == ["failed", "queued"]
    gate.touch()
    again = wait_for(
        lambda: [e for e in cluster.journal("begin") if e["run"] == "004-seed3"][1:], "another attempt", 90
    )
    os.kill(again[0]["pid"], signal.SIGKILL)
    wait_for(lambda: ended(cluster) and not slurm.busy(), "the end", 120)
    states = cluster.states()
    assert states == {
        "seed0": "succeeded", "seed1": "out_of_host_memory", "seed2": "cancelled", "seed3": "lost",
        "seed4": "succeeded", "seed5": "failed", "vote": "succeeded", "out": "succeeded",
    }  # fmt: skip
    assert cluster.status("seed5").reason.startswith("ended with exit code 0, but left no metrics.json")
    assert len(events(cluster, "seed3")) == 8 and "signal 9" in events(cluster, "seed3")[3]["reason"]
    begun = [event["run"] for event in cluster.journal("begin")]
    assert begun.index("007-vote") > max(i for i, run in enumerate(begun) if run == "004-seed3")


def test_a_run_of_a_node_that_fails_goes_on_elsewhere_and_the_old_one_is_fenced_off(cluster: Lab, slurm: Slurm) -> None:
    cluster.plan = {"*": {"seconds": 300}}
    directory = submit(cluster, seeds(1, SMALL), "--set", "slurm.nodelist=n1")
    job = board.read_batches(directory)[0].job
    wait_for(lambda: cluster.journal("begin"), "the run")
    former = running(cluster, "resnet34")
    (directory / "001-resnet34" / "last.ckpt").write_text("epoch 3")
    slurm.kill("n1")  # as a node that is cut off: the run on it goes on
    try:
        wait_for(lambda: "PENDING" in slurm.run("scontrol", "show", "job", f"{job}_0").stdout, "requeued", 90)
        assert Path(f"/proc/{former['pid']}").exists(), "Slurm did not end it"
        slurm.run("scontrol", "hold", f"{job}_0")
        (shown,) = json.loads(cluster.launcher("status", "--json").stdout)["runs"]
        assert shown["state"] == "queued" and shown["reason"].startswith("Slurm starts it again, from last.ckpt; held")
        assert shown["reason"].endswith(f": scontrol release {job}_0")
        slurm.run("scontrol", "release", f"{job}_0")
        slurm.push(f"{job}_0")
        wait_for(lambda: len(cluster.journal("begin")) == 2, "the second attempt", 90)
        processes = [Path(f"/proc/{former[key]}") for key in ("pid", "exec_pid")]
        wait_for(lambda: not any(path.exists() for path in processes), "the end of the old attempt")
        status = cluster.status("resnet34")
        assert (status.attempt, status.figures["node"]) == (2, "n2")
        assert "resume=auto" in cluster.journal("begin")[1]["argv"]
    finally:
        slurm.start_node("n1")
    stopped = cluster.launcher("stop")
    assert "001-resnet34" in stopped.stdout and cluster.states() == {"resnet34": "cancelled"}
    assert [event.get("retry") for event in events(cluster, "resnet34") if event["state"] == "queued"] == [None, 0]
    slurm.wait_idle()


def test_a_preempted_run_writes_its_checkpoint_and_is_another_attempt_that_nobody_counts(
    cluster: Lab, slurm: Slurm
) -> None:
    cluster.plan = {"*": {"seconds": 300}}
    directory = submit(cluster, seeds(1, "resources: {gpus: 2, memory: 300m, cpus: 1}\nretry: {attempts: 1}\n"))
    job = board.read_batches(directory)[0].job
    wait_for(lambda: cluster.journal("begin"), "the run")
    node = running(cluster, "resnet34")["node"]
    slurm.run("sbatch", "-p", "urgent", "-w", node, "--gres=gpu:2", "--mem=100", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: cluster.states()["resnet34"] == "queued", "preempted")
    written = events(cluster, "resnet34")
    assert [event["state"] for event in written[-3:]] == ["running", "lost", "queued"]
    assert written[-2]["reason"] == "preempted in Slurm; last.ckpt is kept" and written[-1]["retry"] == 0
    wait_for(lambda: "PENDING" in slurm.run("scontrol", "show", "job", f"{job}_0").stdout, "requeued")
    slurm.push(f"{job}_0")
    wait_for(lambda: len(cluster.journal("begin")) == 2, "the second attempt")
    os.kill(cluster.journal("begin")[1]["pid"], signal.SIGKILL)
    wait_for(lambda: ended(cluster) and not slurm.busy(), "the end")
    assert (cluster.status("resnet34").state, cluster.status("resnet34").attempt) == ("lost", 2)
    assert cluster.status("resnet34").reason == "killed by SIGKILL from outside"


def test_a_run_that_preemption_cancels_gets_another_job_at_once(cluster: Lab, slurm: Slurm) -> None:
    gate = cluster.root / "gate"
    cluster.plan = {"seed0": {"seconds": 300}, "seed1": {"until": str(gate)}}
    job = seeds(2, "resources: {gpus: 2, memory: 300m, cpus: 1}\nretry: {attempts: 1}\nslurm: {partition: cheap}\n")
    directory = submit(cluster, job)
    wait_for(lambda: len(cluster.journal("begin")) == 2, "the runs")
    node = running(cluster, "seed0")["node"]
    slurm.run("sbatch", "-p", "urgent", "-w", node, "--gres=gpu:2", "--mem=100", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: len(board.read_batches(directory)) == 3, "another job, while its array goes on")
    written = events(cluster, "seed0")
    assert [event["state"] for event in written[2:5]] == ["running", "lost", "queued"]
    assert written[3]["reason"] == "preempted in Slurm; last.ckpt is kept"
    assert (written[4]["reason"], written[4]["retry"]) == ("again, from last.ckpt", 0)
    cluster.plan["seed0"] = {}
    wait_for(lambda: len(cluster.journal("begin")) == 3, "the second attempt")
    gate.touch()
    stopped = cluster.launcher("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr


def test_with_on_failure_stop_runs_that_wait_leave_the_queue_at_once(cluster: Lab, slurm: Slurm) -> None:
    begun = cluster.root / "seed0 runs"
    cluster.plan = {"*": {"seconds": 300}, "seed1": {"seconds": 0, "bad_attempts": 9, "until": str(begun)}}
    two_at_once = "resources: {gpus: 2, memory: 400m, cpus: 1}\n"
    submit(cluster, seeds(5, two_at_once + "on_failure: stop\nretry: {attempts: 1}\n"))
    wait_for(lambda: cluster.states()["seed0"] == "running", "the other run")
    begun.touch()
    wait_for(lambda: cluster.states()["seed1"] == "failed", "a failure")
    wait_for(
        lambda: "PENDING" not in {job["job_state"] for job in slurm.jobs() if job["array_task_string"]}, "no waiting"
    )
    cluster.launcher("status")
    reasons = {cluster.status(name).reason for name in ("seed3", "seed4")}
    assert reasons == {"002-seed1 is failed (on_failure: stop)"} and cluster.states()["seed0"] == "running"


def test_a_run_at_the_partitions_limit_has_timed_out_and_a_sites_variables_change_nothing_unsaid(
    cluster: Lab, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    gate = cluster.root / "gate"
    cluster.plan = {"*": {"until": str(gate)}}
    cluster.environment |= {
        "SBATCH_PARTITION": "short", "SBATCH_TIMELIMIT": "5", "SBATCH_WAIT": "1", "SBATCH_MEM_PER_NODE": "1M",
        "SBATCH_EXPORT": "NONE", "SBATCH_ARRAY_INX": "0-9", "SBATCH_OUTPUT": "/nonexistent/out",
        "SBATCH_NO_REQUEUE": "1", "SQUEUE_PARTITION": "urgent", "SLURM_MEM_PER_CPU": "1", "SINFO_PARTITION": "urgent",
    }  # fmt: skip
    job = cluster.job(
        seeds(1, "resources: {memory: 300m, cpus: 1}\nretry: {on: [timed_out], attempts: 2, backoff: 0}\n")
    )
    notes = (
        "note: slurm.partition is short, from $SBATCH_PARTITION",
        "SBATCH_MEM_PER_NODE (use resources.memory), SBATCH_NO_REQUEUE, SBATCH_OUTPUT, SBATCH_TIMELIMIT (use timeout)",
        "note: Slurm ends runs after 1 min 0 s, the time limit of partition short; the job has no timeout",
    )
    others = slurm.run("sbatch", "--parsable", "--hold", "--array=0-9", "--wrap", "true").stdout.strip()
    for command in (("plan",), ("submit", "--detach")):
        told = cluster.launcher(*command, job, "--engine", "slurm")
        assert told.returncode == 0, told.stdout + told.stderr
        assert all(unwrapped(told.stdout).count(note) == 1 for note in notes), told.stdout
        long = cluster.launcher(*command, job, "--engine", "slurm", "--set", "timeout=8h")
        assert long.returncode == 64 and "use timeout: 1m or less, or another partition" in long.stderr
    assert "Slurm runs it now, without this launcher (as with --detach)" in told.stdout
    directory = cluster.submission()
    doctor = cluster.launcher("doctor").stdout
    assert "slurm.partition is short" in doctor and "SBATCH_TIMELIMIT (use timeout)" in doctor
    assert "short: 2 nodes of up to 2 GPUs, 8 cores, 15.6 GiB, runs of at most 1 min 0 s" in doctor
    listed = board.load(directory).snapshot.jobs
    assert {(job.partition, job.limit) for job in listed} == {("short", 60)} and len(listed) == 2
    assert others not in {str(job.array) for job in listed}
    slurm.run("scancel", others)
    gpus = cluster.launcher("resume", "--gpus", "0")
    assert gpus.returncode == 64 and "--gpus has no effect: Slurm chooses" in gpus.stderr
    limited = wait_for(lambda: [e for e in events(cluster, "resnet34") if e["state"] == "timed_out"], "the limit", 120)
    limit = "Slurm's time limit of 1 min 0 s was reached (of partition short or its QOS); last.ckpt is kept"
    assert limited[0]["reason"] == limit
    gate.touch()
    wait_for(lambda: ended(cluster) and not slurm.busy(), "the end", 120)
    assert (cluster.status("resnet34").state, cluster.status("resnet34").attempt) == ("succeeded", 2)


def test_what_slurm_refuses_is_told_before_anything_is_made_and_doctor_says_what_it_has(
    cluster: Lab, slurm: Slurm
) -> None:
    job = cluster.job(seeds(1, "slurm:\n  partition: nope\n"))
    refused = cluster.launcher("submit", job, "--engine", "slurm")
    assert refused.returncode != 0 and "nope" in refused.stderr and "partition" in refused.stderr
    misspelt = cluster.launcher("submit", job, "--engine", "slurm", "--partition", "main", "--set", "slurm.zone=1")
    assert misspelt.returncode == 64, misspelt.stderr
    assert "job.yaml" in misspelt.stderr and "unrecognized option '--zone=1'" in misspelt.stderr
    large = cluster.launcher("submit", job, "--engine", "slurm", "--partition", "main", "--set", "resources.gpus=3")
    assert large.returncode == 64 and "3 GPU requested, 2 available" in large.stderr
    assert cluster.launcher("submit", job, "--partition", "main").returncode == 64  # not without --engine slurm
    assert not list(cluster.runs.glob("*"))
    command = ["srun", "--gres=gpu:1", "--mem=400M", sys.executable, "-m", "launcher", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, **cluster.arguments())
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert "on node n" in checks["slurm job"]["said"] and checks["slurm"]["level"] == "ok"
    assert "2 nodes of up to 2 GPUs, 8 cores" in checks["partition"]["said"] and "slurm.conf" not in checks


def test_the_trainer_itself_through_slurm(cluster: Lab, slurm: Slurm) -> None:
    write_sample_data(cluster.root / "documents", classes=2, per_class=10)
    cluster.environment["PYTHONPATH"] = str(REPOSITORY)  # without the one that stands in for the trainer
    words = "overrides: {model.name: resnet10t, model.pretrained: false, data.img_size: 32, training.epochs: 1,"
    words += " training.num_workers: 0, training.batch_size: 8}\n"
    more = "resources: {gpus: 0, cpus: 1, memory: 3g}\n"
    directory = submit(cluster, words + more, "--data", "documents")
    wait_for(lambda: ended(cluster) and not slurm.busy(), "the end", 600)
    log = "\n".join(path.read_text() for path in directory.glob("*/log.txt"))
    assert set(cluster.states().values()) == {"succeeded"}, log
    assert "epoch 1/1" in log and (cluster.runs / "champion" / "best_model.ckpt").is_file()


def test_a_thousand_runs_of_one_shape_are_one_call_of_sbatch(cluster: Lab, slurm: Slurm) -> None:
    directory = submit(cluster, seeds(1000, "resources: {gpus: 1, cpus: 1, memory: 300m}\nslurm: {begin: now+1hour}\n"))
    kinds = [(batch.kind, len(batch.runs)) for batch in board.read_batches(directory)]
    assert kinds == [("runs", 1000), ("after_runs", 0)]
    (array,) = [job for job in slurm.jobs() if job["array_task_string"] and job["job_state"] == "PENDING"]
    assert (array["array_task_string"], array["job_state"]) == ("0-999", "PENDING")
    again = cluster.launcher("resume")
    assert "no run is queued again" in again.stdout and len(board.read_batches(directory)) == 2
    stopped = cluster.launcher("stop")
    assert stopped.returncode == 0 and set(cluster.states().values()) == {"cancelled"}
    assert "0012-seed11 … and 988 more\n" in stopped.stdout
    wait_for(lambda: not slurm.busy(), "an empty queue")


def test_all_that_a_trainer_leaves_ends_with_its_task(cluster: Lab) -> None:
    cluster.plan = {"*": {"children": ["deaf setsid double", "deaf setsid double closed"]}}
    submit(cluster, seeds(1, "resources: {memory: 400m, cpus: 1, gpus: 0}\n"))
    wait_for(lambda: ended(cluster), "its end")
    assert cluster.states() == {"resnet34": "succeeded"} and len(cluster.left()) == 2
    assert not [pid for pid in cluster.left() if processes.find(pid)]
    assert "--- ended with the trainer: process " in (find_run(cluster.runs, "1") / "log.txt").read_text()
