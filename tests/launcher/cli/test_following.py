"""Exit codes of the commands that follow a submission, and an engine that is not there."""

from __future__ import annotations

import json
import re

import pytest

from launcher.base.errors import RunError
from launcher.engines import registry
from tests.launcher.conftest import Lab, seeds, wait_for


def test_commands_that_follow_end_with_the_codes_of_attach(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate"), "exit": 3}}
    job = lab.job(seeds(1, "retry: {on: [failed], backoff: 0s, attempts: 2}\n"))
    process = lab.start("submit", job, lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    followers = [lab.start("logs", "1", "-f"), lab.start("status", "--watch"), lab.start("attach")]
    for follower in followers:
        assert follower.stdout is not None and follower.stdout.read(1)
    (lab.root / "gate").touch()
    assert [follower.wait(60) for follower in followers] == [1] * 3 and process.wait(60) == 1
    assert followers[0].stdout is not None
    assert lab.status("1").attempt == 2 and "attempt 2" in followers[0].stdout.read(), "all attempts are followed"
    assert lab.launcher("logs", "1").returncode == lab.launcher("status").returncode == 0


def test_one_run_can_be_resumed_and_the_others_stay_as_they_are(lab: Lab) -> None:
    lab.plan = {"seed0": {"exit": 3}, "seed1": {"until": str(lab.root / "gate")}}
    after = "after: [{name: vote, step: ensemble, from: {runs: ['*seed1']}}]\nmax_parallel: 1\n"
    process = lab.start("submit", lab.job(seeds(3, after)), lab.machine())
    wait_for(lambda: len(lab.journal("begin")) == 2, "the second run")
    process.kill()
    process.wait()
    (lab.root / "gate").touch()
    wait_for(lambda: lab.launcher("status").returncode == 0 and lab.states()["seed1"] == "succeeded", "its end")
    lab.plan = {}
    done = lab.launcher("resume", "vote", lab.machine())
    assert done.returncode == 0, done.stdout + done.stderr
    before = {"seed0": "failed", "seed1": "succeeded", "seed2": "queued"}
    assert lab.states() == {**before, "vote": "succeeded"}
    done = lab.launcher("resume", "1", lab.machine(), "--detach")
    assert done.returncode == 0 and "continuing; 1 run queued again: 001-seed0" in done.stdout, done
    wait_for(lambda: lab.states() == {**before, "seed0": "succeeded", "vote": "succeeded"}, "its second attempt")
    told = lab.launcher("resume", "nosuch")
    assert told.returncode == 64 and "no submission and no run 'nosuch'; valid: 001-seed0, " in told.stderr


def test_following_what_was_stopped_or_nobody_starts(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(2, "max_parallel: 1\n")), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    process.kill()
    process.wait()
    (lab.root / "gate").touch()
    wait_for(lambda: lab.launcher("status").returncode == 0 and lab.states()["seed0"] == "succeeded", "its end")
    told = lab.launcher("logs", "seed1", "-f")
    assert told.returncode == 1 and "is queued, and no launcher is running its submission; continue with" in told.stderr
    assert lab.launcher("status", "--watch").returncode == 1
    assert lab.launcher("stop").returncode == 0
    assert lab.launcher("logs", "seed1", "-f").returncode == lab.launcher("status", "--watch").returncode == 130
    assert lab.launcher("logs", "seed0", "-f").returncode == 0


def test_an_engine_that_is_not_there_is_one_clear_error(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(2, "max_parallel: 1\n")), lab.machine())
    wait_for(lambda: lab.journal("begin"), "a run")
    process.kill()
    process.wait()
    path = lab.submission() / "submission.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "engine": "natve"}))
    for command in ("resume", "status"):
        done = lab.launcher(command)
        said = "submission.json: engine: no engine 'natve'; did you mean 'native'?"
        assert done.returncode == 1 and done.stderr.startswith("error: ") and said in done.stderr, done
        assert len(done.stderr.splitlines()) == 1
    texts = {json.dumps({"engine": name}): f"engine: no engine '{name}'" for name in (None, "kubernetes")}
    texts |= {json.dumps({"engine": name}): "not a submission of this launcher: engine: " for name in (5, ["native"])}
    for text, said in {**texts, "{": "cannot be read", "[]": "not a submission of this launcher"}.items():
        path.write_text(text)
        registry._named_by.cache_clear()
        with pytest.raises(RunError, match=rf"submission\.json: {re.escape(said)}"):
            registry.of_submission(path.parent)
