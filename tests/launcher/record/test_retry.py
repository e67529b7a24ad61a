"""Further attempts: which ends are worth one, and what is different in it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from typing import Any

import pytest

from launcher.record import retry
from launcher.record.find import find_run
from launcher.record.folders import state_folder
from launcher.record.journal import read_events
from launcher.record.request import Retry, RunRequest, read_request
from launcher.record.states import ENDED
from tests.launcher.conftest import Lab, seeds, wait_for


def request(batch: int = 16, *words: str, **policy: Any) -> RunRequest:
    return RunRequest(
        "001-x", 1, "train", ["train", *words], retry=Retry(**policy), config={"batch_size": batch}
    )  # fmt: skip


def ended(state: str, attempts: int = 1, **figures: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for number in range(attempts):
        events += [{"state": "queued", "retry": number}, {"state": "starting"}, {"state": "running"}]
        events.append({"state": state, **figures})
    return events


EVERYTHING = {"on": ("out_of_device_memory", "lost", "failed", "timed_out")}


@pytest.mark.parametrize(
    ("state", "figures", "policy", "wait"),
    [
        ("lost", {}, {}, None),
        ("lost", {}, {"on": ("lost",)}, 30),
        ("failed", {"exit_code": 1}, EVERYTHING, 30),
        ("timed_out", {}, EVERYTHING, 30),
        ("failed", {"exit_code": 64}, EVERYTHING, None),
        ("failed", {"exit_code": 65}, EVERYTHING, None),
        ("cancelled", {}, EVERYTHING, None),
        ("lost", {}, {"on": ("lost",), "attempts": 1}, None),
        ("out_of_device_memory", {}, {}, 0),
    ],
)
def test_an_end_is_worth_another_attempt_where_the_policy_says_so(
    state: str, figures: dict[str, Any], policy: dict[str, Any], wait: float | None
) -> None:
    again = retry.decide(request(**policy), ended(state, **figures))
    assert (again.wait if isinstance(again, retry.NextAttempt) else None) == wait


def test_waits_double_and_attempts_are_counted() -> None:
    policy = {"attempts": 4, "on": ("lost",), "backoff": 10}
    waits = [retry.decide(request(**policy), ended("lost", attempts)) for attempts in (1, 2, 3, 4)]
    assert [each.wait for each in waits[:3] if isinstance(each, retry.NextAttempt)] == [10, 20, 40]
    assert waits[3] == "not repeated: 4 attempts were made"


def test_a_journal_without_events_or_with_nulls_is_no_reason_for_an_attempt_too_many() -> None:
    assert retry.decide(request(on=("failed",)), []) is None
    events = [{"state": "queued", "retry": None}, {"state": "failed", "exit_code": None}]
    assert retry.retries(events) == 0 and isinstance(retry.decide(request(on=("failed",)), events), retry.NextAttempt)


def test_what_somebody_resumes_has_all_its_attempts_again() -> None:
    events = [*ended("lost", 3), {"state": "queued", "attempt": 4}, {"state": "starting"}, {"state": "lost"}]
    assert isinstance(retry.decide(request(on=("lost",)), events), retry.NextAttempt)


def test_host_memory_is_not_tried_again_and_it_is_said() -> None:
    assert "limit would be the same" in str(retry.decide(request(**EVERYTHING), ended("out_of_host_memory")))


@pytest.mark.parametrize(
    ("batch", "words", "sizes"),
    [(16, (), [8, 4, 2, 1]), (24, ("training.micro_batch=12",), [6, 3, 1]), (15, (), [5, 1]), (7, (), [1])],
)
def test_the_micro_batch_shrinks_to_a_divisor_of_the_effective_batch(
    batch: int, words: tuple[str, ...], sizes: list[int]
) -> None:
    asked, seen = request(batch, *words, attempts=100), []
    events = ended("out_of_device_memory")
    while isinstance(again := retry.decide(asked, events), retry.NextAttempt):
        seen.append(again.micro_batch)
        events += [{"state": "queued", "retry": len(seen), "micro_batch": again.micro_batch}]
        assert retry.command(asked, events) == ["train", f"training.micro_batch={again.micro_batch}"]
        events += [{"state": "out_of_device_memory"}]
    assert seen == sizes and again == "not repeated: micro-batch 1 cannot be halved"


def test_several_gpus_share_the_smaller_micro_batch() -> None:
    assert [retry.smaller_micro_batch(30, 30, gpus) for gpus in (1, 2, 4)] == [15, 10, None]


@pytest.mark.parametrize(
    ("devices", "words", "told"),
    [
        ([], (), None),
        (["0"], (), "device=cuda"),
        (["0", "3"], (), "device=cuda"),
        (["mps"], (), "device=mps"),
        (["0"], ("device=cpu",), "device=cpu"),
        (["0"], ("device=auto",), "device=cuda"),
    ],
)
def test_a_run_is_told_the_device_it_was_given(devices: list[str], words: tuple[str, ...], told: str | None) -> None:
    events = [{"state": "queued"}, {"state": "starting", "devices": devices}]
    given = retry.command(request(16, *words), events)
    assert [word for word in given if word.startswith("device=")] == ([told] if told else [])


def test_a_step_is_told_the_device_it_was_given() -> None:
    events = [{"state": "starting", "devices": ["0"]}]
    asked = RunRequest("004-out", 4, "predict", ["predict", "--checkpoint", "a.ckpt"])
    assert retry.command(asked, events)[3:] == ["--device", "cuda"]
    named = dataclasses.replace(asked, command=[*asked.command, "--device", "cpu"])
    assert retry.command(named, events) == named.command
    assert retry.command(asked, [{"state": "starting", "devices": []}]) == asked.command
    other = dataclasses.replace(asked, kind="analyze")
    assert retry.command(other, events) == other.command, "it has no such option"


def test_a_run_without_device_memory_goes_on_at_once_with_half_the_micro_batch(lab: Lab) -> None:
    lab.plan = {"*": {"largest_micro_batch": 4}}
    done = lab.launcher("submit", lab.job(seeds(1, "retry: {attempts: 3, backoff: 1h}\n")), lab.machine())
    assert done.returncode == 0, done.stdout
    asked = [[w for w in event["argv"] if "micro" in w] for event in lab.journal("begin")]
    assert asked == [[], ["training.micro_batch=8"], ["training.micro_batch=4"]]
    assert "again with micro-batch 8, the effective batch stays 16" in done.stdout
    events = read_events(find_run(lab.runs, "1"))
    ends = [(event["attempt"], event["state"], event["reason"]) for event in events if event["state"] in ENDED]
    assert [(number, state) for number, state, _ in ends] == [
        (1, "out_of_device_memory"), (2, "out_of_device_memory"), (3, "succeeded")
    ]  # fmt: skip
    assert "at micro-batch 16" in ends[0][2] and "at micro-batch 8" in ends[1][2]
    log = (find_run(lab.runs, "1") / "log.txt").read_text()
    assert all(f"--- attempt {number}" in log for number in (1, 2, 3))


def test_attempts_come_to_an_end_and_steps_wait_for_the_last(lab: Lab) -> None:
    lab.plan = {
        "seed0": {"bad_attempts": 2},
        "seed1": {"bad_attempts": 9},
        "seed2": {"bad_attempts": 9, "bad_exit": 64},
    }
    more = "retry: {attempts: 3, on: [failed], backoff: 100ms}\nafter: [{name: vote, step: ensemble, from: {top: 3}}]\n"
    refused = lab.launcher("submit", lab.job(seeds(3, more)), lab.machine())
    assert refused.returncode == 64 and "job.yaml:3: retry.backoff" in refused.stderr
    done = lab.launcher("submit", lab.job(seeds(3, more.replace("100ms", "0.1s"))), lab.machine())
    assert done.returncode == 1
    assert lab.states() == {"seed0": "succeeded", "seed1": "failed", "seed2": "failed", "vote": "succeeded"}
    assert [lab.status(name).attempt for name in ("seed0", "seed1", "seed2")] == [3, 3, 1]
    (vote,) = [event for event in lab.journal("begin") if event["run"].endswith("vote")]
    assert vote["argv"] == ["ensemble", "--checkpoints", f"{lab.submission()}/001-seed0/best.ckpt"]
    assert "not repeated: 3 attempts were made" in done.stdout


def test_a_lost_run_starts_again_from_its_checkpoint(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(1, "retry: {on: [lost], backoff: 0s}\n")), lab.machine())
    wait_for(lambda: lab.states() == {"resnet34": "running"} if lab.journal("begin") else False, "a run")
    (begin,) = lab.journal("begin")
    os.kill(begin["pid"], signal.SIGTERM)  # from outside: it writes last.ckpt
    wait_for(lambda: len(lab.journal("begin")) == 2, "the second attempt")
    (lab.root / "gate").touch()
    assert process.wait(60) == 0 and lab.status("1").attempt == 2
    lost = next(e for e in read_events(find_run(lab.runs, "1")) if e["state"] == "lost")
    assert "stopped from outside" in lost["reason"] and (lab.submission() / "001-resnet34" / "last.ckpt").exists()


def test_on_failure_stop_cancels_what_has_not_begun(lab: Lab) -> None:
    lab.plan = {"seed0": {"exit": 1}}
    more = "max_parallel: 1\non_failure: stop\nafter: [{name: vote, step: ensemble, from: {top: 3}}]\n"
    assert lab.launcher("submit", lab.job(seeds(3, more)), lab.machine()).returncode == 1
    assert lab.states() == {"seed0": "failed", "seed1": "cancelled", "seed2": "cancelled", "vote": "cancelled"}
    assert "001-seed0 is failed (on_failure: stop)" in lab.status("2").reason


def test_a_job_that_follows_another_waits_for_its_end(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}, "late": {"until": str(lab.root / "gate")}}
    first = lab.start("submit", lab.job(seeds(1, "name: first\n")), lab.machine())
    wait_for(lambda: lab.journal("begin"), "the first")
    text = "name: second\nfollows: first\nafter: [{name: late, step: ensemble, from: {top: 1, submission: first}}]\n"
    second = lab.start("submit", lab.job(text, "second.yaml"), lab.machine())
    assert second.stdout is not None
    wait_for(lambda: "waiting: first-" in (second.stdout.readline() or ""), "word of the wait")  # type: ignore[union-attr]
    assert len(lab.journal("begin")) == 1
    (lab.root / "gate").touch()
    assert first.wait(60) == 0 and second.wait(60) == 0
    begins, ends = lab.journal("begin"), lab.journal("end")
    assert begins[1]["time"] > ends[0]["time"] and begins[1]["run"] == "001-late"
    refused = lab.launcher(
        "submit", lab.job("follows: nobody\noverrides: {model: resnet34}\n", "x.yaml"), lab.machine()
    )
    assert refused.returncode == 64 and "x.yaml:1: follows: " in refused.stderr and "nobody" in refused.stderr


def test_run_files_of_an_earlier_version_are_read(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine()).returncode == 0
    path = state_folder(find_run(lab.runs, "1")) / "run.json"
    content = json.loads(path.read_text())
    del content["retry"]
    path.write_text(json.dumps({**content, "attempts": 1}))
    assert read_request(path.parent).retry == Retry()
