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
from launcher.engines.slurm.calls import Node, SlurmError, node
from launcher.engines.slurm.engine import SlurmEngine
from launcher.engines.slurm.jobs import ending
from launcher.engines.slurm.squeue import Detail, Key
from launcher.job.spec import from_overrides
from launcher.record import lease
from launcher.record.find import list_runs
from launcher.record.folders import state_folder
from launcher.record.journal import append_event, create_run, read_events
from launcher.record.lease import Holder
from launcher.record.request import Resources, RunRequest
from trainer.base.files import write_json

RECORDED = (Path(__file__).parent / "squeue" / "22.05.txt").read_text().replace("|", squeue.SEPARATOR)


def test_a_recorded_list_of_jobs() -> None:
    listed = squeue.parse(RECORDED)

    def look(text: str) -> tuple[bool, bool, str] | None:
        job = listed.find(squeue.key(text))
        return (job.waits, job.over, job.end) if job else None

    assert look("22_0") == (False, False, "") and look("22_1") == (False, True, "COMPLETED")
    assert look("22_2") == look("22_7") == (True, False, "") and look("22_8") is None  # 22_2 was requeued
    assert look("26_0") == look("26_3") == (False, True, "CANCELLED") and look("27") == (True, False, "")
    assert look("29") == (False, True, "OUT_OF_MEMORY") and look("28") == (False, True, "FAILED")
    assert (look("30") or ())[:2] == (False, False)  # COMPLETING: its processes are still being ended
    assert look("45") is None
    failed, short = listed.find(Key(28)), listed.find(Key(31))
    assert failed is not None and (failed.nodes, failed.reason) == ("n1", "NonZeroExitCode")
    assert short is not None and (short.limit, short.partition, short.name) == (120, "short", "job-1.007")
    assert short.folder == "/shared/runs/job-1" and short.reason == ""
    assert listed.living(22) and not listed.living(26) and listed.pending(27) and not listed.pending(28)
    words = [job.words for job in listed.jobs if job.waits or job.tasks]
    assert words == ["26_[0-3]", "22_[2-2,4-7]", "27"]


def test_the_words_of_a_wrapper_are_no_jobs_and_an_answer_without_a_header_is_none() -> None:
    assert squeue.parse("Welcome to the cluster!\n" + RECORDED) == squeue.parse(RECORDED)
    for text in ("", "Welcome to the cluster!\n", RECORDED.partition("\n")[2], RECORDED + "12|x\n"):
        with pytest.raises(ValueError, match="not a"):
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
    line = "n1|gpu:a100:4(S:0-1),shard:8|64|512000+|gpu*|infinite|n/a"
    assert node(line) == Node("gpu", True, 4, 64.0, 512000 * 2**20)
    line = "n1|gpu:2,gpu:t4:1|8|16000|x|1-00:00:00|30:00"
    assert node(line) == Node("x", False, 3, 8.0, 16000 * 2**20, 86400, 1800)
    assert node("n1|(null)|8|16000|x|2:00|n/a") == Node("x", False, 0, 8.0, 16000 * 2**20, 120)
    assert node("no such") is None


def test_slurms_words_on_an_end_become_states_with_reasons() -> None:
    def said(state: str, **more: object) -> tuple[str, str]:
        job = squeue.Detail(frozenset([state]), nodes="n1", **more)
        return ending(request(memory_place="job.yaml:3"), Key(7), job, asked=False)

    limit = "Slurm's time limit of 3 min 0 s was reached (of partition gpu or its QOS) on n1"
    assert said("TIMEOUT", limit=180.0, partition="gpu") == ("timed_out", limit)
    assert said("TIMEOUT") == ("timed_out", "Slurm's time limit was reached on n1")
    assert said("DEADLINE")[0] == "timed_out"
    for state in ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"):
        assert said(state) == ("lost", "its node failed on n1")
    assert said("PREEMPTED") == ("lost", "preempted on n1") and said("REVOKED")[0] == "lost"
    assert said("CANCELLED") == ("cancelled", "cancelled in Slurm (scancel) on n1")
    assert said("OUT_OF_MEMORY")[0] == "out_of_host_memory" and "24 GiB (job.yaml:3)" in said("OUT_OF_MEMORY")[1]
    assert said("FAILED", signal=9) == ("lost", "it ended without a message: FAILED, signal 9 on n1")
    assert ending(request(), Key(7), None, asked=False)[0] == "lost"
    assert ending(request(), Key(7), None, asked=True)[0] == "cancelled"


AT = "CANCELLED AT 2026-11-30T17:38:23"
RUNNING, CLOSING = frozenset(["RUNNING"]), frozenset(["COMPLETING"])


@pytest.mark.parametrize(
    "notice, job, state, reason, again",
    [
        # the warning before a time limit: a notice without a cause, of a job that is still running
        (AT, Detail(RUNNING, partition="gpu", limit=180, elapsed=103), "timed_out", "time limit of 3 min 0 s", ""),
        ("", Detail(RUNNING, partition="gpu", limit=180, elapsed=103), "timed_out", "(of partition gpu or its QOS)", ""),
        (f"{AT} DUE TO TIME LIMIT", Detail(CLOSING, limit=180, elapsed=181), "timed_out", "limit of 3 min 0 s", ""),
        ("", Detail(CLOSING, limit=180, elapsed=181), "timed_out", "time limit of 3 min 0 s", ""),
        (f"{AT} DUE TO TIME LIMIT", None, "timed_out", "Slurm's time limit was reached", ""),
        # scancel: the job is ending before its limit; or only signalled, long before its limit
        (AT, Detail(CLOSING, limit=180, elapsed=103), "cancelled", "cancelled in Slurm (scancel)", ""),
        (AT, Detail(CLOSING), "cancelled", "cancelled in Slurm (scancel)", ""),
        ("", Detail(frozenset(["CANCELLED"])), "cancelled", "cancelled in Slurm (scancel)", ""),
        (AT, Detail(RUNNING, limit=36000, elapsed=103), "cancelled", "cancelled in Slurm (scancel)", ""),
        (AT, None, "cancelled", "cancelled in Slurm (scancel)", ""),
        # preemption: with PreemptMode=REQUEUE Slurm starts the job again; with CANCEL, or in its time of grace, not
        (f"{AT} DUE TO PREEMPTION", Detail(CLOSING), "lost", "preempted in Slurm", "requeued"),
        (f"{AT} DUE TO PREEMPTION", None, "lost", "preempted in Slurm", "requeued"),
        (f"{AT} DUE TO PREEMPTION", Detail(CLOSING, preempted=True), "lost", "preempted in Slurm", "preempted"),
        (AT, Detail(RUNNING, limit=180, elapsed=103, preempted=True), "lost", "preempted in Slurm", "preempted"),
        (f"{AT} DUE TO JOB REQUEUE", Detail(CLOSING), "lost", "requeued in Slurm", "requeued"),
        # faults of nodes
        (f"{AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", None, "lost", "its node failed", ""),
        ("UNCORRECTABLE MEMORY ERROR AT 2026-11-30T17:38:23", None, "lost", "a memory error of its node", ""),
        ("FAILED (non-zero exit code or other failure mode)", None, "lost", "its node failed", ""),
    ],
)  # fmt: skip
def test_why_slurm_ended_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: str, job: Detail | None, state: str, reason: str,
    again: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    create_run(tmp_path / "s" / "001-a", request())

    def answer(key: Key) -> Detail:
        assert key == Key(12)
        if job is None:
            raise SlurmError("no answer")
        return job

    monkeypatch.setattr(slurm_task.calls, "detail", answer)
    output = tmp_path / "001.out"
    others = [f"slurmstepd-n1: error: *** JOB {number} ON n1 {AT}{due} ***\n"
              for number, due in ((13, ""), (112, " DUE TO TIME LIMIT"))]  # fmt: skip
    output.write_text(f"slurmstepd-n1: error: *** JOB 12 ON n1 {AT} DUE TO NODE FAILURE ***\n")
    lease = task_lease.TaskLease(tmp_path / "s" / "001-a", 1)
    overseer = slurm_task.SlurmOverseer(tmp_path / "s" / "001-a", lease, {}, output)
    killed = ("lost", "killed by SIGKILL")
    assert overseer.judge(*killed) == killed  # the notice is of an earlier one
    line = f"slurmstepd-n1: error: *** JOB 12 ON n1 {notice} ***\n" if notice else ""
    output.write_text(output.read_text() + line + "".join(others))
    assert overseer.asked(2) == 1  # a warning and the end itself are one request
    judged = overseer.judge("cancelled", "stopped on request")
    assert judged[0] == state and reason in judged[1] and judged[1].endswith("; it had no checkpoint yet")
    assert (overseer.requeued, overseer.preempted) == (again == "requeued", again == "preempted")
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
    header, pending = squeue.HEADER, ["7", "7", "0-1", "PENDING", "UNLIMITED", "", "main", "s.001", "/s", "Priority"]
    (tmp_path / "jobs").write_text(f"{header}\n{squeue.SEPARATOR.join(pending)}\n")
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
