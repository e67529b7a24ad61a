"""What Slurm says, in the shapes of several versions, and what is asked of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from launcher.base.errors import FencedError, JobError
from launcher.engines import registry
from launcher.engines.slurm import board, squeue, task_lease
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm import task as slurm_task
from launcher.engines.slurm.calls import Node, node
from launcher.engines.slurm.engine import SlurmEngine
from launcher.engines.slurm.jobs import ending
from launcher.engines.slurm.squeue import Key
from launcher.job.spec import from_overrides
from launcher.record import lease
from launcher.record.find import list_runs
from launcher.record.folders import state_folder
from launcher.record.journal import append_event, create_run, read_events
from launcher.record.lease import Holder
from launcher.record.request import Resources, RunRequest
from trainer.base.files import write_json

SHAPES = sorted((Path(__file__).parent / "squeue").glob("*.json"))


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_every_shape_says_the_same(path: Path) -> None:
    found = squeue.parse(path.read_text())

    def look(text: str) -> tuple[bool, bool, str] | None:
        job = found.find(squeue.key(text))
        return (job.waits, job.over, job.end) if job else None

    assert look("20_0") == (False, False, "") and look("20_1") == (False, True, "COMPLETED")
    assert look("20_2") == look("20_7") == (True, False, "") and look("20_8") is None  # 20_2 was requeued
    assert look("30_0") == look("30_3") == (False, True, "CANCELLED") and look("40") == (True, False, "")
    assert look("41") == (False, True, "OUT_OF_MEMORY") and look("42") == (False, True, "FAILED")
    assert (look("43") or ())[:2] == (False, False)  # COMPLETING: its processes are still being ended
    assert look("44") == (False, True, "NODE_FAIL") and look("45") is None
    failed, oom = found.find(Key(42)), found.find(Key(41))
    assert failed is not None and (failed.exit_code, failed.signal, failed.nodes) == (3, 0, "n1")
    assert oom is not None and oom.signal == 125 and oom.folder == "/shared/runs/job-1" and oom.name == "job-1.005"
    assert found.living(20) and not found.living(30) and found.pending(40) and not found.pending(42)
    running = found.find(Key(20, 0))
    assert running is not None and running.end_time > 1795813000


def test_the_shapes_are_those_of_several_versions() -> None:
    assert [path.stem for path in SHAPES] == ["22.05", "23.02", "24.05"]


def test_what_is_no_list_of_jobs_is_told() -> None:
    for text in ("", "[]", "{}", '{"jobs": 3}'):
        with pytest.raises(ValueError):
            squeue.parse(text)


def test_a_list_of_tasks_that_slurm_has_cut_short_stands_for_all_further_ones() -> None:
    parts = squeue.ranges("0-2,7,9-11%4...")
    assert [task for task in (0, 3, 7, 8, 11, 12, 999) if any(task in part for part in parts)] == [0, 7, 11, 12, 999]


def request(**more: object) -> RunRequest:
    resources = Resources(gpus=2, memory=24 * 2**30, cpus=7.5)
    return dataclasses.replace(RunRequest("001-a", 1, "train", ["train"], resources=resources), **more)


def test_a_request_becomes_sbatchs_words() -> None:
    options = {
        "partition": "gpu",
        "gpu_type": "a100",
        "runtime": "native",
        "exclusive": True,
        "nice": 100,
        "hint": None,
    }
    assert slurm_request.words(request(timeout=3600.0), options) == (
        "--nodes=1", "--ntasks=1", "--gres=gpu:a100:2", "--mem=24576M", "--cpus-per-task=8", "--time=63", "--requeue",
        "--signal=B:TERM@60", "--partition=gpu", "--exclusive", "--nice=100",
    )  # fmt: skip
    assert "--gres" not in " ".join(slurm_request.words(request(resources=Resources()), {}))


def test_arrays_are_cut_where_slurm_takes_no_longer_ones_and_throttled() -> None:
    names = [f"{index:04d}" for index in range(2500)]
    parts = slurm_request.cut(names, 1001)
    assert [len(part) for part in parts] == [1001, 1001, 498] and [each for part in parts for each in part] == names
    assert slurm_request.array_word(1000, None) == "--array=0-999" == slurm_request.array_word(1000, 1000)
    assert slurm_request.array_word(1000, 8) == "--array=0-999%8"


def test_options_that_are_not_for_the_job_file_are_told_at_their_place() -> None:
    with pytest.raises(JobError) as told:
        from_overrides(
            ["model=resnet34"],
            [
                "slurm.gres=gpu:1",
                "slurm.mem_per_cpu=4G",
                "slurm.partiton=x",
                "slurm.mail-user=[a]",
                "slurm.runtime=podman",
            ],
            registry.sections(),
        )
    assert "slurm.runtime: 'podman' is not allowed" in str(told.value)
    with pytest.raises(JobError) as told:
        settings = [
            "slurm.gres=gpu:1",
            "slurm.mem_per_cpu=4G",
            "slurm.partiton=x",
            "slurm.mail-user=[a]",
            "slurm.time=1h",
        ]
        from_overrides(["model=resnet34"], settings, registry.sections())
    for line in (
        "slurm.gres: is not allowed in the job file; use resources.gpus instead",
        "slurm.mem_per_cpu: is not allowed in the job file; use resources.memory instead",
        "slurm.partiton: unknown field; did you mean 'partition'",
        "slurm.mail-user: must be a text, a number, true or false, not ['a']",
        "slurm.time: is not allowed in the job file; use timeout instead",
    ):
        assert line in str(told.value), str(told.value)


def test_what_sinfo_says_of_nodes() -> None:
    assert node("n1|gpu:a100:4(S:0-1),shard:8|64|512000+|gpu*") == Node("gpu", True, 4, 64.0, 512000 * 2**20)
    assert node("n1|gpu:2,gpu:t4:1|8|16000|x") == Node("x", False, 3, 8.0, 16000 * 2**20)
    assert node("n1|(null)|8|16000|x") == Node("x", False, 0, 8.0, 16000 * 2**20) and node("no such") is None


def test_slurms_words_on_an_end_become_states_with_reasons() -> None:
    def said(state: str, **more: object) -> tuple[str, str]:
        job = squeue.SlurmJob(7, states=frozenset([state]), nodes="n1", **more)
        return ending(request(memory_place="job.yaml:3"), Key(7), job, asked=False)

    assert said("TIMEOUT") == ("timed_out", "Slurm's time limit was reached on n1")
    assert said("NODE_FAIL") == ("lost", "its node failed on n1") and said("PREEMPTED")[0] == "lost"
    assert said("CANCELLED") == ("cancelled", "cancelled in Slurm (scancel) on n1")
    assert said("OUT_OF_MEMORY")[0] == "out_of_host_memory" and "24 GiB (job.yaml:3)" in said("OUT_OF_MEMORY")[1]
    assert said("FAILED", signal=9) == ("lost", "it ended without a message: FAILED, signal 9 on n1")
    assert ending(request(), Key(7), None, asked=False)[0] == "lost"
    assert ending(request(), Key(7), None, asked=True)[0] == "cancelled"


@pytest.mark.parametrize(
    "notice, state, reason",
    [
        (" DUE TO PREEMPTION", "lost", "preempted in Slurm"),
        (" DUE TO JOB REQUEUE", "lost", "requeued in Slurm"),
        (" DUE TO TIME LIMIT", "timed_out", "Slurm's time limit was reached"),
        (" DUE TO NODE FAILURE", "lost", "its node failed"),
        ("", "cancelled", "cancelled in Slurm (scancel)"),
    ],
)
def test_what_slurm_wrote_into_a_jobs_output_tells_why_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: str, state: str, reason: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    create_run(tmp_path / "s" / "001-a", request())
    output = tmp_path / "001.out"
    lines = [f"slurmstepd-n1: error: *** JOB {job} ON n1 CANCELLED AT 2026-11-27T20:43:39{due} ***\n"
             for job, due in ((12, notice), (13, ""), (112, " DUE TO TIME LIMIT"))]  # fmt: skip
    output.write_text(
        "slurmstepd-n1: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-27T20:00:00 DUE TO NODE FAILURE ***\n"
    )
    lease = task_lease.TaskLease(tmp_path / "s" / "001-a", 1)
    overseer = slurm_task.SlurmOverseer(tmp_path / "s" / "001-a", lease, {}, output)
    assert overseer.judge("lost", "killed by SIGKILL") == (
        "lost",
        "killed by SIGKILL",
    )  # the notice is of an earlier one
    output.write_text(output.read_text() + "".join(lines))
    assert overseer.asked(2) == 1  # a warning and the end itself are one request
    assert overseer.judge("cancelled", "stopped on request") == (state, f"{reason}; it had no checkpoint yet")
    assert overseer.requeued == (notice in (" DUE TO PREEMPTION", " DUE TO JOB REQUEUE"))
    assert overseer.judge("failed", "exit code 3") == ("failed", "exit code 3")


def test_an_attempt_on_another_host_is_waited_for_until_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "s" / "001-a"
    create_run(run_dir, request())
    monkeypatch.setattr(task_lease, "EXPIRY", 0.4)
    former = Holder("elsewhere", "boot", 1, 1, "token")
    said: list[str] = []
    looks = itertools.count()

    def beat(seconds: float) -> None:
        beats = min(next(looks), 3)  # it lives for three more looks
        write_json(state_folder(run_dir) / "exec.json", dataclasses.asdict(dataclasses.replace(former, beat=beats)))

    monkeypatch.setattr(task_lease.time, "sleep", beat)
    write_json(state_folder(run_dir) / "exec.json", dataclasses.asdict(former))
    task_lease.await_former(run_dir, said.append)
    assert next(looks) > 4 and said == ["checking for 0.4 s whether elsewhere has ended the run"]
    write_json(
        state_folder(run_dir) / "exec.json",
        {**json.loads((state_folder(run_dir) / "exec.json").read_text()), "released": True},
    )
    before = next(looks)
    task_lease.await_former(run_dir, said.append)
    assert next(looks) == before + 1 and len(said) == 1 and lease.boot_id() != "boot"


def test_the_former_attempt_sees_that_it_has_lost_the_run_and_can_write_no_more(tmp_path: Path) -> None:
    run_dir = tmp_path / "s" / "001-a"
    create_run(run_dir, request())
    append_event(run_dir, "starting", engine="slurm", slurm="12_0")
    former = task_lease.TaskLease(run_dir, 1)
    former.start_beating()
    assert not former.lost() and task_lease.read_holder(run_dir) == former.holder
    journal, aside = state_folder(run_dir) / "events.jsonl", run_dir / "aside"
    journal.rename(aside)
    journal.mkdir()
    assert not former.lost(look=True), "a volume that does not answer tells nothing"
    journal.rmdir()
    assert not former.lost(look=True), "nor does one that is not mounted"
    aside.rename(journal)
    assert slurm_task.claim(run_dir, 1, Key(12, 1)) is None, "another job's"
    assert slurm_task.claim(run_dir, 1, Key(12, 0)) == 2
    assert [event["state"] for event in read_events(run_dir)][-2:] == ["lost", "queued"]
    assert former.lost(look=True)
    append_event(run_dir, "starting", 2, engine="slurm", slurm="12_0")
    with pytest.raises(FencedError, match="attempt 1 has ended: attempt 2 has started"):
        append_event(run_dir, "running", 1)
    later = task_lease.TaskLease(run_dir, 2)
    later.start_beating()
    former.release()
    word = task_lease.read_holder(run_dir)
    assert word is not None and (word.fence, word.released) == (2, False), "it speaks for itself alone"
    assert task_lease.is_fresh(run_dir) is False, "on this host the lock tells"
    later.release()


def test_a_controller_that_is_silent_is_waited_for_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, engine = tmp_path / "s", SlurmEngine()
    for name in ("001-a", "002-b", "003-c"):
        create_run(directory / name, request())
    (directory / "slurm").mkdir()
    board.write_batch(directory, board.Batch("001", "runs", [], [("001-a", 1)], job=7))
    monkeypatch.setenv("PATH", str(tmp_path))
    command = tmp_path / "squeue"
    command.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/calls\necho 'error: no answer' >&2\nexit 1\n")
    command.chmod(0o755)
    assert [engine.settle(path) for path in list_runs(directory)] == [True] * 3
    assert engine.trouble == "squeue: no answer" and (tmp_path / "calls").read_text() == "asked\n"


def test_what_ends_or_is_queued_again_while_slurm_answers_is_judged_by_its_journal_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "s"
    ended, again = directory / "001-a", directory / "002-b"
    late = {ended: tmp_path / "ended", again: tmp_path / "again"}
    for run_dir in late:
        create_run(run_dir, request())
    for state in ("starting", "running", "lost"):
        append_event(again, state, engine="slurm", slurm="7_1")
    before = {run_dir: (state_folder(run_dir) / "events.jsonl").read_text() for run_dir in late}
    append_event(ended, "cancelled")
    append_event(again, "queued", 2, engine="slurm", slurm="7_1")
    for run_dir, text in before.items():
        late[run_dir].write_text((state_folder(run_dir) / "events.jsonl").read_text().removeprefix(text))
        (state_folder(run_dir) / "events.jsonl").write_text(text)
    (directory / "slurm").mkdir()
    board.write_batch(directory, board.Batch("001", "runs", ["--array=0-1"], [("001-a", 1), ("002-b", 1)], job=7))
    pending = {"job_id": 7, "array_job_id": 7, "array_task_string": "0-1", "job_state": "PENDING"}
    (tmp_path / "jobs").write_text(json.dumps({"jobs": [pending]}))
    answer = [f"cat {file} >> {state_folder(run_dir)}/events.jsonl" for run_dir, file in late.items()]
    for name, lines in (
        ("squeue", [*answer, f"cat {tmp_path}/jobs"]),
        ("scancel", [f'echo "$@" >> {tmp_path}/cancelled']),
    ):
        (tmp_path / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    SlurmEngine().release(directory)
    assert (tmp_path / "cancelled").read_text().split()[-1] == "7_0" and "7_1" not in (
        tmp_path / "cancelled"
    ).read_text()
