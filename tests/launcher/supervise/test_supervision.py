"""Submissions as their user lives through them: real processes, killed and stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.record.find import find_run, list_submissions
from launcher.record.folders import state_folder
from launcher.record.journal import read_events
from launcher.record.locks import is_locked
from launcher.supervise import supervisor
from tests.launcher.conftest import Lab, seeds, unwrapped, wait_for
from tests.opened import watching


def test_a_submission_leaves_every_run_succeeded_and_a_leaderboard(lab: Lab) -> None:
    lab.plan = {"seed0": {"f1": 0.7}, "seed1": {"f1": 0.9}, "seed2": {"f1": 0.8}, "vote": {"f1": 0.95}}
    after = "after:\n  - {name: vote, step: ensemble, from: {top: 2}}\n  - {name: out, step: predict, needs: [vote]}\n"
    done = lab.launcher("submit", lab.job(seeds(3, after)), lab.machine())
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(lab.states().values()) == {"succeeded"}
    lines = (lab.submission() / "leaderboard.csv").read_text().splitlines()
    order = [line.split(",")[1].partition("-")[2] for line in lines[1:]]
    assert order == ["vote", "seed1", "seed2", "seed0"]
    assert (lab.runs / "champion" / "best_model.ckpt").read_bytes().endswith(b"002-seed1")
    argv = {event["run"].partition("-")[2]: event["argv"] for event in lab.journal("begin")}
    runs_dir = f"{lab.submission()}/"
    assert argv["vote"] == [
        "ensemble",
        "--checkpoints",
        f"{runs_dir}002-seed1/best.ckpt",
        f"{runs_dir}003-seed2/best.ckpt",
    ]
    assert argv["out"] == ["predict", "--checkpoint", f"{runs_dir}004-vote/ensemble.json"]
    assert argv["seed0"] == ["train", "model=resnet34", "seed=0", "resume=auto"]
    assert "004-vote" in done.stdout and "0.9500" in done.stdout and "submission.csv" not in done.stderr


def test_submissions_of_the_same_second_do_not_meet(lab: Lab) -> None:
    job, machine = lab.job(seeds(1)), lab.machine()
    processes = [lab.start("submit", job, machine) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert len(list_submissions(lab.runs)) == 6 and len(lab.journal("end")) == 6
    assert not list(lab.runs.glob(".new-*"))


def test_the_job_file_is_kept_byte_for_byte(lab: Lab) -> None:
    text = "# a comment, ümlauts\n" + seeds(1) + "\n\n"
    lab.launcher("submit", lab.job(text), lab.machine())
    assert (lab.submission() / "job.yaml").read_text() == text


def test_failed_runs_stop_no_others_and_steps_take_what_succeeded(lab: Lab) -> None:
    lab.plan = {
        "seed0": {"exit": 64, "print": "error: training.lr=0: must be more"},
        "seed1": {"exit": 65, "print": "error: train.csv:7: the file is missing"},
        "seed2": {"exit": 75, "print": "error: out of device memory at micro-batch 16"},
        "seed3": {"exit": 3, "print": "error: [enforce fail at x.cc:1] odd"},
        "seed4": {"signal": int(signal.SIGKILL)},
        "seed5": {"signal": int(signal.SIGSEGV)},
    }
    after = "after:\n  - {name: vote, step: ensemble, from: {top: 3}}\n"
    done = lab.launcher("submit", lab.job(seeds(7, after)), lab.machine())
    assert done.returncode == 1
    assert lab.states() == {
        "seed0": "failed",
        "seed1": "failed",
        "seed2": "out_of_device_memory",
        "seed3": "failed",
        "seed4": "lost",
        "seed5": "failed",
        "seed6": "succeeded",
        "vote": "succeeded",
    }
    assert lab.status("1").reason == "bad configuration: training.lr=0: must be more"
    assert lab.status("seed1").reason == "bad data: train.csv:7: the file is missing"
    assert "micro-batch 16" in lab.status("seed2").reason
    assert lab.status("seed3").reason.startswith("exit code 3") and lab.status("seed3").figures["exit_code"] == 3
    assert "SIGKILL" in lab.status("seed4").reason and "SIGSEGV" in lab.status("seed5").reason
    assert "launcher logs" in done.stdout and "[enforce fail at x.cc:1] odd" in done.stdout


def test_a_step_without_a_run_to_work_on_fails_and_takes_its_followers_along(lab: Lab) -> None:
    lab.plan = {"*": {"exit": 1}}
    after = "after:\n  - {name: vote, step: ensemble, from: {top: 2}}\n  - {name: out, step: predict, needs: [vote]}\n"
    assert lab.launcher("submit", lab.job(seeds(2, after)), lab.machine()).returncode == 1
    assert lab.states() == {"seed0": "failed", "seed1": "failed", "vote": "failed", "out": "cancelled"}
    assert "no run of" in lab.status("vote").reason and "'003-vote' failed" in lab.status("out").reason


def test_killed_with_9_the_supervisor_takes_no_run_along(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(3, "max_parallel: 2\n")), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs")
    process.kill()
    process.wait()
    shown = json.loads(lab.launcher("status", "--json").stdout)
    assert shown["state"] == "unattended"
    assert [run["state"] for run in shown["runs"]] == ["running", "running", "queued"]
    gate.touch()
    wait_for(
        lambda: list(lab.states().values()) == ["succeeded", "succeeded", "queued"], "both to finish by themselves"
    )
    text = lab.launcher("status").stdout
    assert "unattended" in text and "launcher resume" in text
    assert lab.launcher("resume", lab.machine()).returncode == 0
    assert set(lab.states().values()) == {"succeeded"}
    assert len(lab.journal("begin")) == 3, "nothing ran twice"


def test_resume_of_a_finished_run_names_the_stopped_one(lab: Lab) -> None:
    lab.plan = {"seed1": {"exit": 3}}
    machine = lab.machine()
    assert lab.launcher("submit", lab.job(seeds(2)), machine).returncode == 1
    done = lab.launcher("resume", "1", machine)
    name = lab.submission().name
    assert (
        f"{name}: nothing to do: 1 of 2 runs are finished; not asked for: 002-seed1 (launcher resume {name})"
        in unwrapped(done.stdout)
    )


STEPS = "after: [{name: vote, step: ensemble, from: {top: 2}}, {name: out, step: predict, needs: [vote]}]\n"


@pytest.mark.parametrize("more", ["max_parallel: 1\n", "resources: {memory: 40g}\n"])
def test_resume_of_one_run_leaves_room_for_those_in_progress(lab: Lab, more: str) -> None:
    lab.plan = {"seed0": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(2, more)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "the first run")
    process.kill()
    process.wait()
    resumed = lab.start("resume", "2", lab.machine())
    wait_for(lambda: "waiting: 001-seed0 of this submission is in progress" in lab.launcher("status").stdout, "why")
    assert lab.states() == {"seed0": "running", "seed1": "queued"}
    (lab.root / "gate").touch()
    assert resumed.wait(60) == 0 and set(lab.states().values()) == {"succeeded"}


def test_resume_of_a_step_without_its_input_is_refused(lab: Lab) -> None:
    lab.plan, machine = {"vote": {"bad_attempts": 1, "bad_exit": 3}}, lab.machine()
    assert lab.launcher("submit", lab.job(seeds(1, STEPS)), machine).returncode == 1
    name = lab.submission().name
    before = lab.journal("begin")
    refused = lab.launcher("resume", f"{name}/003-out", machine)
    assert refused.returncode == 1 and lab.journal("begin") == before, refused.stdout
    assert refused.stderr.startswith(
        f"error: 003-out: needs 002-vote, which is failed (exit code 3: a bad day); continue that run first: launcher "
        f"resume {name}/002-vote --runs "
    )
    assert len(read_events(lab.submission() / "003-out")) == 2, "it is not queued and cancelled again"
    assert lab.launcher("resume", f"{name}/002-vote", machine).returncode == 0
    assert lab.launcher("resume", f"{name}/003-out", machine).returncode == 0
    assert set(lab.states().values()) == {"succeeded"}


def test_resume_leaves_steps_whose_input_cannot_come(lab: Lab) -> None:
    lab.plan, machine = {"vote": {"exit": 64}}, lab.machine()
    assert lab.launcher("submit", lab.job(seeds(1, STEPS)), machine).returncode == 1
    done = lab.launcher("resume", machine)
    assert done.returncode == 1 and len(read_events(lab.submission() / "003-out")) == 2
    reason = "it needs 002-vote, which is failed (bad configuration: working) and is never repeated; correct the job"
    assert f"003-out is not repeated: {reason}" in done.stdout
    refused = lab.launcher("resume", "3", machine)
    assert refused.returncode == 1 and "which is failed (bad configuration: working) and is never" in refused.stderr


def test_resume_of_an_ensemble_without_any_model_is_refused(lab: Lab) -> None:
    bad, machine = {"bad_attempts": 1, "bad_exit": 3}, lab.machine()
    lab.plan = {"seed0": bad, "seed1": bad}
    assert lab.launcher("submit", lab.job(seeds(2, STEPS)), machine).returncode == 1
    refused = lab.launcher("resume", "003-vote", machine)
    said = (
        "003-vote: needs one of 2 runs, and none has succeeded: 001-seed0 is failed (exit code 3: a bad day); continue"
    )
    assert refused.returncode == 1 and said in refused.stderr
    assert lab.launcher("resume", machine).returncode == 0 and set(lab.states().values()) == {"succeeded"}


def test_resume_says_when_nothing_is_left_to_do(lab: Lab) -> None:
    lab.plan = {"seed0": {"exit": 65}}
    job, machine = lab.job(seeds(2)), lab.machine()
    assert lab.launcher("submit", job, machine).returncode == 1
    again = lab.launcher("resume", machine)
    said = "nothing to do: 1 of 2 runs are finished; never repeated: 001-seed0 (configuration or data must be corrected"
    assert again.returncode == 1 and f"{lab.submission().name}: {said}, then submit again)" in unwrapped(again.stdout)
    assert said in unwrapped(lab.launcher("resume", "2", machine).stdout)
    lab.plan = {}
    assert lab.launcher("submit", job, machine, "--fresh").returncode == 0
    again = lab.launcher("resume", machine)
    assert again.returncode == 0 and "all 2 runs are finished; nothing to do\n" in again.stdout
    assert "continuing" not in again.stdout


def test_a_new_supervisor_adopts_what_still_runs(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(2)), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs")
    process.kill()
    process.wait()
    again = lab.start("resume", lab.machine())
    wait_for(lambda: is_locked(lab.submission() / "supervisor.lock"), "the new supervisor")
    gate.touch()
    assert again.wait(60) == 0 and len(lab.journal("begin")) == 2


def test_a_second_supervisor_is_refused(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    refused = lab.launcher("resume", lab.machine())
    assert refused.returncode == 1 and "another launcher is running this submission" in refused.stderr
    gate.touch()
    assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_supervisor_never_reads_ended_runs_again(lab: Lab) -> None:
    gates = {f"seed{number}": lab.root / f"gate{number}" for number in (1, 2)}
    lab.plan = {name: {"until": str(gate)} for name, gate in gates.items()}
    job = lab.job(seeds(4, "max_parallel: 1\nretry: {attempts: 2, on: [failed], backoff: 1s}\n"))
    assert lab.launcher("submit", job, lab.machine(), "--detach").returncode == 0
    wait_for(lambda: len(lab.journal("begin")) == 2, "the second run")
    over = find_run(lab.runs, "seed0")
    with watching(over, state_folder(over)) as opened:
        gates["seed1"].touch()
        wait_for(lambda: len(lab.journal("begin")) == 3, "the third run")
        time.sleep(supervisor.RESCAN + 1)  # it has looked at the queued runs, too, and asked the scheduler
        assert opened.take() == []
        assert lab.states()["seed0"] == "succeeded"
        assert any(name.endswith("events.jsonl") for name in opened.take()), "this test sees who reads"
    gates["seed2"].touch()
    wait_for(lambda: set(lab.states().values()) == {"succeeded"}, "the end")


def test_a_run_whose_process_is_killed_is_lost_and_its_trainer_ends(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    os.kill(wait_for(lambda: lab.status("1").figures.get("exec_pid"), "its process"), signal.SIGKILL)
    assert process.wait(60) == 1
    assert lab.status("1").state == "lost"
    if sys.platform == "linux":
        wait_for(lambda: lab.journal("stopped"), "the orphan to be told")
    lab.plan = {"*": {"seconds": 0}}
    assert lab.launcher("resume", lab.machine()).returncode == 0
    assert (lab.status("1").state, lab.status("1").attempt) == ("succeeded", 2)


def test_ctrl_c_stops_with_checkpoints(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60}}
    process = lab.start("submit", lab.job(seeds(3, "max_parallel: 2\n")), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert set(lab.states().values()) == {"cancelled"} and len(lab.journal("stopped")) == 2
    assert "last.ckpt is kept" in lab.status("1").reason and "launcher resume" in output
    assert "Traceback" not in output


def test_a_second_ctrl_c_does_not_wait(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 600, "stubborn": True}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert process.poll() is None, "the first one waits"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert lab.status("1").state == "cancelled" and "starts from the beginning" in lab.status("1").reason


def test_hanging_up_leaves_the_runs_running(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    process.send_signal(signal.SIGHUP)
    assert "continue without this launcher" in process.communicate(timeout=30)[0]
    assert lab.status("1").state == "running"
    gate.touch()
    wait_for(lambda: lab.status("1").state == "succeeded", "its end")


def test_a_run_beyond_its_time_limit_is_stopped(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60}}
    assert lab.launcher("submit", lab.job(seeds(1, "timeout: 0.3s\n")), lab.machine()).returncode == 1
    assert lab.status("1").state == "timed_out" and "timeout:" in lab.status("1").reason
    assert lab.journal("stopped"), "it was asked before it was killed"


def test_a_clock_that_is_set_back_loses_no_result(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    lab.environment["FAKE_CLOCK"] = str(gate)
    process = lab.start("submit", lab.job(seeds(1, "timeout: 1h\n")), lab.machine())
    wait_for(lambda: lab.journal("begin") and lab.status("1").state == "running", "a run")
    gate.touch()
    assert process.wait(60) == 0, process.stdout and process.stdout.read()
    events = read_events(find_run(lab.runs, "1"))
    assert events[-1]["state"] == "succeeded" and events[-1]["time"] < events[0]["time"]
    assert 0 <= events[-1]["seconds"] < 60


def test_stop_ends_one_run_or_all(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(4, "max_parallel: 2\n")), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs")
    name = lab.submission().name
    stopped = lab.launcher("stop", "seed0").stdout
    assert f"{name}: stopped: 001-seed0\n" in stopped and f"launcher resume {name} --runs runs" in stopped
    assert lab.status("1").state == "cancelled" and lab.status("seed1").state == "running"
    wait_for(lambda: len(lab.journal("begin")) == 3, "the next run")
    assert lab.launcher("stop").returncode == 0
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and f"stopped; continue with: launcher resume {name}" in output
    assert set(lab.states().values()) == {"cancelled"} and len(lab.journal("begin")) == 3
    lab.plan = {}
    again = lab.launcher("resume", lab.machine())
    assert again.returncode == 0, again.stdout + again.stderr
    attempts = {name: lab.status(name).attempt for name in lab.states()}
    assert attempts == {"seed0": 2, "seed1": 2, "seed2": 2, "seed3": 1}, "it was stopped before its first attempt"
    assert "attempt 2" not in "".join(line for line in again.stdout.splitlines() if "004-seed3" in line)
    assert f"{name}: nothing was running" in lab.launcher("stop").stdout
    wrong = lab.launcher("stop", "nosuch").stderr
    assert "no submission and no run 'nosuch'; valid: 001-seed0, " in wrong and f", {name}\n" in wrong
    log = lab.launcher("logs", "seed0")
    assert log.stderr == f"{name}/001-seed0:\n" and name not in log.stdout
    assert lab.launcher("logs", f"{name}/seed0").stderr == ""


def test_a_stop_that_came_too_late_for_any_run_is_a_success(lab: Lab) -> None:
    lab.plan = {"*": {"stubborn": True, "seconds": 1}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and lab.states() == {"resnet34": "succeeded"}


def test_exec_executes_one_run_by_hand(lab: Lab) -> None:
    lab.plan = {"*": {"exit": 3}}
    lab.launcher("submit", lab.job(seeds(1)), lab.machine())
    run_dir = find_run(lab.runs, "1")
    lab.plan = {}
    assert lab.launcher("exec", str(run_dir)).returncode == 0
    assert (lab.status("1").state, lab.status("1").attempt) == ("succeeded", 2)
    log = (run_dir / "log.txt").read_text()
    assert "--- attempt 1" in log and "--- attempt 2" in log
    done = lab.launcher("exec", str(run_dir))
    assert done.returncode == 1 and "succeeded" in done.stderr and len(lab.journal("begin")) == 2
    assert lab.launcher("exec", str(lab.root)).returncode == 64, "no run has this name"


def test_exec_of_a_run_under_way_is_refused(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    done = lab.launcher("exec", str(find_run(lab.runs, "1")))
    assert done.returncode == 1 and "is being executed already" in done.stderr
    gate.touch()
    assert process.wait(60) == 0


def test_secrets_are_files_of_the_run_and_nowhere_else(lab: Lab) -> None:
    lab.environment = {"TOKEN": "hunter2-hunter2"}
    job = lab.job(seeds(1, "secrets: [TOKEN, NOT_SET]\n"))
    done = lab.launcher("submit", job, lab.machine())
    assert done.returncode == 0
    (event,) = lab.journal("begin")
    assert event["secrets"] == {"TOKEN": ["hunter2-hunter2", "0o600"]} and "TOKEN" not in event["env"]
    assert not Path(event["env"]["SECRETS_DIR"]).exists()
    found = subprocess.run(["grep", "-rl", "hunter2", str(lab.runs)], capture_output=True, text=True)
    assert found.stdout == "" and "hunter2" not in done.stdout


def test_secrets_of_a_run_that_was_killed_are_taken_back(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 60}}
    lab.environment = {"TOKEN": "hunter2-hunter2"}
    process = lab.start("submit", lab.job(seeds(1, "secrets: [TOKEN]\n")), lab.machine())
    (begin,) = wait_for(lambda: lab.journal("begin"), "a run")
    folder = Path(begin["env"]["SECRETS_DIR"])
    assert (folder / "TOKEN").exists()
    process.kill()
    process.wait()
    os.kill(lab.status("1").figures["exec_pid"], signal.SIGKILL)
    wait_for(lambda: lab.launcher("status").returncode == 0 and lab.states() == {"resnet34": "lost"}, "word of its end")
    assert not folder.exists()


def test_a_log_is_followed_until_the_run_ends(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate), "print": "the last words"}}
    process = lab.start("submit", lab.job(seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    follower = lab.start("logs", "1", "-f")
    assert follower.stdout is not None
    wait_for(lambda: "working" in (follower.stdout.readline() if follower.stdout else ""), "the first line")
    gate.touch()
    assert "the last words" in follower.communicate(timeout=30)[0]
    assert process.wait(60) == 0


def test_an_ensemble_of_an_earlier_submission_trains_nothing(lab: Lab) -> None:
    lab.plan = {"seed1": {"f1": 0.9}}
    lab.launcher("submit", lab.job(seeds(3), "first.yaml"), lab.machine())
    first = lab.submission()
    job = lab.job("after: [{name: vote, step: ensemble, from: {top: 2, submission: first}}]\n", "second.yaml")
    assert lab.launcher("submit", job, lab.machine()).returncode == 0
    (event,) = [e for e in lab.journal("begin") if e["run"] == "001-vote"]
    assert event["argv"][2] == f"{first}/002-seed1/best.ckpt" and lab.submission() != first
    wrong = lab.launcher("submit", job, lab.machine(), "--set", "after.0.from.submission=frist")
    assert wrong.returncode == 64 and "no submission 'frist'" in wrong.stderr


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with 300 MB, of either version."""
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    group = root / ("memory" if v1 else "") / f"launcher-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(300 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror}): this needs root and a writable {root}")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text().strip(), "its processes to end")
    group.rmdir()


def test_a_run_that_the_kernel_kills_for_memory_is_told_from_one_that_was_killed(lab: Lab, small_group: Path) -> None:
    lab.plan = {"*": {"megabytes": 600}}
    job = lab.job(seeds(1))
    enter = f"echo $$ > {small_group}/cgroup.procs; exec {sys.executable} -m launcher submit {job}"
    done = subprocess.run(["bash", "-c", enter], capture_output=True, **lab.arguments())
    assert done.returncode == 1, done.stderr
    assert lab.status("1").state == "out_of_host_memory" and "for lack of memory" in lab.status("1").reason
    assert "0.3 GiB" in done.stdout, "the machine's memory is what the group allows"
