"""What is asked of Slurm: only for the submission's own jobs, without the variables of a site; a task that fails touches
its own run alone. Slurm's commands are stand-ins here."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.base.errors import JobError
from launcher.engines import registry
from launcher.engines.slurm import board, calls, choice, repeat, squeue, variables
from launcher.engines.slurm import request as slurm_request
from launcher.engines.slurm.board import Batch
from launcher.engines.slurm.calls import Node, SlurmError
from launcher.engines.slurm.engine import SlurmEngine
from launcher.engines.slurm.jobs import waiting
from launcher.engines.slurm.section import SlurmSpec
from launcher.engines.slurm.squeue import Key
from launcher.job.spec import Job, from_overrides
from launcher.record import folders, lease
from launcher.record.journal import append_event, create_run, read_events, read_status
from launcher.record.request import Resources, Retry, RunRequest
from launcher.supervise import submission as resuming
from trainer.base.files import write_json

Stub = Callable[..., None]
HEADER = f"{squeue.HEADER}…\n"


def record(*fields: str) -> str:
    return squeue.SEPARATOR.join(fields) + "\n"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A function that makes a command: it notes its arguments, prints a text and ends with a code."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")

    def make(name: str, prints: str = "", code: int = 0, more: str = "") -> None:
        (tmp_path / f"{name}.out").write_text(prints)
        lines = [f'for word in "$@"; do echo "$word"; done >> {tmp_path}/{name}.calls', more]
        lines += [f"cat {tmp_path}/{name}.out" + (" >&2" if code else ""), f"exit {code}"]
        (commands / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (commands / name).chmod(0o755)

    return make


def asked(tmp_path: Path, command: str) -> list[str]:
    path = tmp_path / f"{command}.calls"
    return path.read_text().splitlines() if path.exists() else []


def submission(tmp_path: Path, count: int, **written: object) -> Path:
    directory = tmp_path / "s"
    request = RunRequest("", 1, "train", ["train"], retry=Retry(attempts=3, on=("failed", "timed_out"), backoff=0))
    names = [f"{number:03d}-a" for number in range(1, count + 1)]
    for name in names:
        create_run(directory / name, dataclasses.replace(request, name=name))
    write_json(directory / "submission.json", {"engine": "slurm", "slurm": {}, "runs": names, "steps": [], **written})
    return directory


def fail(run_dir: Path, state: str = "failed") -> None:
    append_event(run_dir, "starting", engine="slurm", slurm="7_0")
    append_event(run_dir, "running", engine="slurm", slurm="7_0")
    append_event(run_dir, state, engine="slurm", slurm="7_0")  # type: ignore[arg-type]


def test_only_jobs_of_the_submission_are_asked_for_by_id_and_those_without_one_by_name(
    tmp_path: Path, stub: Stub
) -> None:
    directory = submission(tmp_path, 3)
    (directory / "slurm").mkdir()
    for number, job in (("001", 7), ("002", 8), ("003", None)):
        board.write_batch(directory, Batch(number, "runs", ["--array=0-0"], [(f"{number}-a", 1)], job=job, user=4711))
    lost = record("9", "9", "0", "RUNNING", "UNLIMITED", "n1", "main", "s.003", str(directory), "None")
    ours = record("7", "7", "0", "RUNNING", "UNLIMITED", "n1", "main", "s.001", str(directory), "None")
    reused = record("8", "8", "0", "RUNNING", "UNLIMITED", "n1", "main", "another", "/elsewhere", "None")
    stub("squeue", HEADER + ours + reused + lost)
    look = board.load(directory)
    assert look.snapshot.find(Key(7, 0)) and look.snapshot.find(Key(9, 0))
    assert look.snapshot.find(Key(8, 0)) is None, "Slurm's numbers have begun again: it is somebody else's"
    assert look.key("003-a", read_status(directory / "003-a")) == Key(9, 0)
    words = [word for word in asked(tmp_path, "squeue") if word.startswith(("--jobs", "--user", "--name"))]
    assert words == ["--user=4711", "--jobs=7", "--user=4711", "--jobs=8", f"--user={os.getuid()}", "--name=s.003"]
    calls.jobs(range(100, 1200), 4711)
    assert [word.count(",") for word in asked(tmp_path, "squeue") if word.startswith("--jobs")] == [0, 0, 999, 99]


def test_a_job_that_slurm_has_forgotten_and_a_user_that_this_host_does_not_know(tmp_path: Path, stub: Stub) -> None:
    stub("squeue", "slurm_load_jobs error: Invalid job id specified\n", 1)
    assert calls.jobs([7]).jobs == ()
    known = record("7", "7", "N/A", "RUNNING", "2:00", "n1", "main", "s.001", "/s", "None")
    stub(
        "squeue",
        HEADER + known,
        more='case "$*" in *--user=*) echo "squeue: error: Invalid user: 4711" >&2; exit;; esac',
    )
    assert [job.id for job in calls.jobs([7], 4711).jobs] == [7], "squeue lists no job then, and ends with 0"


@pytest.mark.parametrize("text", ["", "Access denied\n", f"{HEADER}7\n"])
def test_an_answer_that_is_no_list_of_jobs_is_an_error_and_no_run_is_lost(
    tmp_path: Path, stub: Stub, text: str
) -> None:
    directory = submission(tmp_path, 1)
    (directory / "slurm").mkdir()
    board.write_batch(directory, Batch("001", "runs", ["--array=0-0"], [("001-a", 1)], job=7, user=0))
    append_event(directory / "001-a", "starting", engine="slurm", slurm="7_0", host="elsewhere")
    stub("squeue", text)
    engine = SlurmEngine()
    assert engine.settle(directory / "001-a") and read_status(directory / "001-a").state == "starting"
    assert engine.trouble is not None and engine.trouble.startswith("squeue: unknown format: not a")
    assert engine.drives(directory)


def test_a_slurm_that_is_silent_is_told(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("squeue", more="exec sleep 20")
    monkeypatch.setattr(calls, "PATIENCE", 0.2)
    with pytest.raises(SlurmError, match=r"no output of squeue for 0.2 s; try: scontrol ping"):
        calls.check_answer()


def test_the_number_of_a_job_is_read_beside_other_words_of_a_wrapper(tmp_path: Path, stub: Stub) -> None:
    stub("sbatch", "Quota: 12 of 80 hours\n4711;cluster\nsubmitted 3 jobs today\n")
    assert calls.submit([], tmp_path / "x.sh", tmp_path) == 4711
    stub("sbatch", "Quota: 12 of 80 hours\n")
    with pytest.raises(SlurmError, match="printed no job number, but: Quota: 12"):
        calls.submit([], tmp_path / "x.sh", tmp_path)


def test_variables_of_a_site_or_an_allocation_do_not_reach_slurms_commands(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("squeue", HEADER, more=f"env > {tmp_path}/environment")
    names = ("SBATCH_WAIT", "SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SQUEUE_PARTITION", "SQUEUE_USERS", "SINFO_PARTITION",
             "SCANCEL_INTERACTIVE", "SLURM_MEM_PER_CPU", "SLURM_JOB_ID", "SLURM_TIME_FORMAT", "SACCT_FEDERATION")  # fmt: skip
    for name in (*names, "SLURM_CONF", "MINE"):
        monkeypatch.setenv(name, "1")
    calls.check_answer()
    passed = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert not passed & set(names) and {"SLURM_CONF", "MINE"} <= passed


def test_variables_of_sbatch_that_choose_count_and_all_others_are_told() -> None:
    spec = SlurmSpec(account="mine")
    notes = choice.read_variables(
        spec,
        {
            "SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "theirs", "SBATCH_RESERVATION": "course", "SBATCH_QOS": "",
            "SBATCH_TIMELIMIT": "1", "SBATCH_MEM_PER_NODE": "100M", "SBATCH_WAIT": "1", "SBATCH_DEBUG": "1", "HOME": "/",
        },
    )  # fmt: skip
    assert notes == [
        "note: slurm.partition is gpu, from $SBATCH_PARTITION",
        "note: slurm.reservation is course, from $SBATCH_RESERVATION",
        "note: these variables do not apply to runs: SBATCH_MEM_PER_NODE (use resources.memory), "
        "SBATCH_TIMELIMIT (use timeout), SBATCH_WAIT",
    ]
    words = slurm_request.option_words(spec.model_dump(exclude_none=True))
    assert words == ["--partition=gpu", "--account=mine", "--reservation=course"]
    assert not set(variables.CHOICES.values()) - set(slurm_request.OF_SETTLING), "they count for the small job, too"


def job(*settings: str) -> Job:
    return from_overrides(["model=resnet34"], settings, registry.sections())


def test_a_timeout_beyond_the_partitions_limit_is_refused_with_what_to_type(tmp_path: Path, stub: Stub) -> None:
    stub("sinfo", "n1|gpu:2|8|16000|short*|2:00:00|n/a\nn1|gpu:2|8|16000|long|7-00:00:00|n/a\n")
    nodes = calls.of_partition(calls.nodes(None), None)
    with pytest.raises(JobError) as told:
        choice.check_time(job("timeout=8h"), SlurmSpec(), nodes)
    assert "timeout: 8 h 0 min is longer than the limit of partition short, 2 h 0 min" in str(told.value)
    assert "use timeout: 2h or less, or another partition (long)" in str(told.value)
    (note,) = choice.check_time(job("timeout=8h"), SlurmSpec(qos="special"), nodes)
    assert note.startswith("note: timeout: 8 h 0 min is longer") and "if the QOS special does not allow more" in note
    assert choice.check_time(job("timeout=2h"), SlurmSpec(), nodes) == []
    (note,) = choice.check_time(job(), SlurmSpec(), nodes)
    assert note == "note: Slurm ends runs after 2 h 0 min, the time limit of partition short; the job has no timeout"
    usual = [Node("short", True, 0, 8, 2**34, None, 1800)]
    assert "after 30 min 0 s, the default time of partition short" in choice.check_time(job(), SlurmSpec(), usual)[0]
    assert choice.check_time(job(), SlurmSpec(), [Node("x", True, 0, 8, 2**34)]) == []


def test_no_job_asks_for_more_time_than_its_partition_has() -> None:
    run = RunRequest("001-a", 1, "train", ["train"], resources=Resources(), timeout=7200.0)
    assert "--time=123" in slurm_request.words(run, {}) and "--time=120" in slurm_request.words(run, {}, 7200)
    assert "--time=123" in slurm_request.words(run, {}, 3600), "its QOS allows more than the partition"
    assert "--time=15" in slurm_request.settling_words({}, None)
    assert "--time=5" in slurm_request.settling_words({}, 300) and "--time=1" in slurm_request.settling_words({}, 20)


def test_a_task_that_fails_asks_for_its_own_run_again_and_looks_at_nothing_else(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = submission(tmp_path, 20)
    fail(directory / "004-a", "timed_out")
    opened: set[str] = set()
    real = folders.state

    @contextmanager
    def state(run_dir: Path) -> Iterator[folders.Folder]:
        opened.add(run_dir.name)
        with real(run_dir) as folder:
            yield folder

    monkeypatch.setattr(folders, "state", state)
    monkeypatch.setattr(lease, "hold", None)  # would fail
    stub("sbatch", "8\n")
    stub("squeue", code=1)
    repeat.after_failure(directory / "004-a")
    assert opened == {"004-a"} and asked(tmp_path, "squeue") == []
    last = read_events(directory / "004-a")[-1]
    assert (last["state"], last["attempt"], last["reason"]) == ("queued", 2, "after timed_out: again")
    (batch,) = board.read_batches(directory)
    assert (batch.job, batch.runs, batch.user, batch.is_array) == (8, [("004-a", 2)], os.getuid(), True)
    assert shlex.split((directory / "slurm" / "001.sh").read_text())[-1] == "001"
    assert asked(tmp_path, "sbatch").count("--export=ALL") == 1


def test_a_run_that_max_parallel_limits_is_left_to_the_small_job(tmp_path: Path, stub: Stub) -> None:
    stub("sbatch", "8\n")
    directory = submission(tmp_path, 3, max_parallel=2)
    fail(directory / "001-a")
    repeat.after_failure(directory / "001-a")
    assert read_status(directory / "001-a").state == "failed" and asked(tmp_path, "sbatch") == []


def test_if_sbatch_refuses_the_run_stays_queued(tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub("sbatch", "sbatch: error: Batch job submission failed: Slurm temporarily unable to accept job\n", 1)
    directory = submission(tmp_path, 1)
    fail(directory / "001-a")
    repeat.after_failure(directory / "001-a")
    assert read_status(directory / "001-a").state == "queued"
    assert capsys.readouterr().out.startswith("001-a: sbatch: Batch job submission failed")


def test_on_failure_stop_takes_waiting_runs_out_of_the_queue_at_once_and_they_say_why(
    tmp_path: Path, stub: Stub
) -> None:
    directory = submission(tmp_path, 6, on_failure="stop")
    (directory / "slurm").mkdir()
    tasks = [(f"{number:03d}-a", 1) for number in range(1, 7)]
    board.write_batch(directory, Batch("001", "runs", ["--array=0-5"], tasks, job=7, user=os.getuid()))
    fail(directory / "001-a", "out_of_host_memory")
    running = record("9", "7", "1", "RUNNING", "UNLIMITED", "n1", "main", "s.001", str(directory), "None")
    waiting = ["7", "7", "2-5", "PENDING", "UNLIMITED", "", "main", "s.001", str(directory), "Priority"]
    stub("squeue", HEADER + running + record(*waiting))
    stub("scancel")
    repeat.after_failure(directory / "001-a")
    repeat.after_failure(directory / "001-a")
    assert asked(tmp_path, "scancel") == ["--quiet", "7_[2-5]"], "once"
    waiting[3] = "CANCELLED"
    stub("squeue", HEADER + running + record(*waiting))
    assert not SlurmEngine().settle(directory / "004-a")
    why = "001-a is out_of_host_memory (on_failure: stop)"
    assert read_status(directory / "004-a").reason == why == board.stop_reason(directory)
    board.forget_stop_reason(directory)
    assert board.stop_reason(directory) is None


def test_a_waiting_task_that_scancel_took_out_of_its_array_is_cancelled_and_not_submitted_again(
    tmp_path: Path, stub: Stub
) -> None:
    directory = submission(tmp_path, 4)
    (directory / "slurm").mkdir()
    tasks = [(f"{number:03d}-a", 1) for number in range(1, 5)]
    board.write_batch(directory, Batch("001", "runs", ["--array=0-3"], tasks, job=7, user=0))
    stub("squeue", HEADER)  # nothing is known of the array either: another user may not see it, or it is long over
    assert SlurmEngine().settle(directory / "002-a")
    rest = record("7", "7", "0,2-3", "PENDING", "UNLIMITED", "", "main", "s.001", str(directory), "Priority")
    stub("squeue", HEADER + rest)
    assert [SlurmEngine().settle(directory / name) for name, _ in tasks] == [True, False, True, True]
    assert read_status(directory / "002-a").reason == "cancelled in Slurm while it waited (scancel)"
    none = record("7", "7", "N/A", "CANCELLED", "UNLIMITED", "", "main", "s.001", str(directory), "Priority")
    stub("squeue", HEADER + none)
    assert not SlurmEngine().settle(directory / "003-a") and read_status(directory / "003-a").state == "cancelled"


def test_tasks_that_fail_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "998.json").touch()
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: board.reserve(tmp_path), range(40)))
    assert sorted(map(int, numbers)) == list(range(999, 1039)) and board.read_batches(tmp_path) == []
    for number in ("999", "1000"):
        board.write_batch(tmp_path, Batch(number, "runs", []))
    assert [batch.number for batch in board.read_batches(tmp_path)] == ["999", "1000"], "oldest first"


def test_the_accounting_knows_a_job_that_slurm_has_forgotten(tmp_path: Path, stub: Stub) -> None:
    stub("scontrol", "slurm_load_jobs error: Invalid job id specified\n", 1)
    stub("sacct", "TIMEOUT|0:15|00:03:00|gpu|n1\n")
    known = calls.detail(Key(7, 3))
    assert known is not None and (known.end, known.limit, known.partition, known.nodes) == ("TIMEOUT", 180, "gpu", "n1")
    assert "--jobs=7_3" in asked(tmp_path, "sacct")
    stub("sacct", "RUNNING|0:0|00:03:00|gpu|n1\n")  # as it is known to say for years
    assert calls.detail(Key(7, 3)) is None


def test_the_longest_time_of_recorded_partitions() -> None:
    recorded = (Path(__file__).parent / "squeue" / "partitions-22.05.txt").read_text()
    assert squeue.longest(recorded, None) is None and squeue.longest(recorded, "short") == 60
    assert squeue.longest(recorded, "short,urgent") is None and squeue.longest(recorded, "nope") is None
    assert squeue.longest(recorded.replace("MaxTime=UNLIMITED", "MaxTime=1-00:00:00"), "short,urgent") == 86400


def test_a_recorded_job_in_detail(tmp_path: Path, stub: Stub) -> None:
    recorded = (Path(__file__).parent / "squeue" / "details-22.05.txt").read_text().splitlines()
    details = [squeue.detail(line) for line in recorded]
    assert [job.end for job in details] == ["", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", ""]
    running, failed, memory, timeout, preempted = details
    assert (running.limit, running.left, running.nodes) == (None, None, "n1") and not running.preempted
    assert (failed.exit_code, failed.signal) == (3, 0) and memory.signal == 125
    assert (timeout.limit, timeout.elapsed, timeout.left, timeout.partition) == (120, 137, -17, "short")
    assert preempted.preempted and "COMPLETING" in preempted.states
    stub("scontrol", recorded[0])
    assert calls.detail(Key(22, 0), "job-1.001", "/x") == running == calls.detail(Key(22, 0), "y", "/shared/runs/job-1")
    assert calls.detail(Key(22, 0), "another.001", "/shared/runs/another") is None
    for text in ("", "No jobs in the system", "Welcome"):
        with pytest.raises(ValueError):
            squeue.detail(text)


def test_a_job_that_will_never_start_says_what_to_change() -> None:
    assert waiting("Priority", "7_0") == "Slurm: Priority"
    assert waiting("JobHeldAdmin", "7_0") == "held in Slurm (JobHeldAdmin): scontrol release 7_0"
    for reason, change in (
        ("PartitionTimeLimit", "a shorter timeout: or another partition"),
        ("QOSMaxWallDurationPerJobLimit", "a shorter timeout: or another partition"),
        ("QOSMaxMemoryPerJob", "smaller resources: or another qos"),
        ("InvalidQOS", "another qos"),
    ):
        assert waiting(reason, "7").endswith(
            f"{reason}: it will not start as it is; launcher stop, then submit with {change}"
        )


def test_a_run_that_its_own_task_repeats_while_resume_looks_at_it_is_left_alone(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = submission(tmp_path, 2)
    stub("sbatch", "8\n")
    for name in ("001-a", "002-a"):
        fail(directory / name)
    renew = resuming._renew

    def meanwhile(run_dir: Path, *more: object) -> None:
        if run_dir.name == "001-a":
            repeat.after_failure(run_dir)
        renew(run_dir, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(resuming, "_renew", meanwhile)
    with lease.hold(directory) as mine:
        assert resuming.requeue(directory, mine) == ["002-a"]
    assert [event["state"] for event in read_events(directory / "001-a")].count("queued") == 2
    assert read_status(directory / "001-a").reason == "after failed: again"
