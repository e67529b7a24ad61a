"""Who stops or looks at the latest submission hears of the others that go on."""

from __future__ import annotations

from launcher.record.find import list_submissions
from launcher.record.journal import create_run
from launcher.record.request import RunRequest
from tests.launcher.conftest import Lab, seeds, wait_for
from trainer.base.files import write_json


def test_another_submission_that_runs_is_named(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    first = lab.start("submit", lab.job("name: first\n" + seeds(1)), lab.machine())
    wait_for(lambda: lab.journal("begin"), "the first run")
    lab.plan = {}
    assert lab.launcher("submit", lab.job("name: second\n" + seeds(1)), lab.machine()).returncode == 0
    one, two = (path.name for path in list_submissions(lab.runs))
    expected = f"note: another submission is running: {one}; "
    stopped, shown = lab.launcher("stop"), lab.launcher("status")
    assert (
        f"{two}: nothing was running or queued\n{expected}to stop it: launcher stop {one} --runs runs\n"
        in stopped.stdout
    )
    assert f"{expected}see: launcher status {one} --runs runs\n" in shown.stdout
    for words in (("stop", two), ("status", two), ("status", "--json")):
        assert "another submission" not in lab.launcher(*words).stdout
    first.kill()  # its run goes on without it
    first.wait()
    assert expected in lab.launcher("status").stdout
    third = lab.runs / "third-20261130-101500"
    create_run(third / "001-x", RunRequest("001-x", 1, "train", ["train"]))
    write_json(third / "submission.json", {"engine": "native", "runs": ["001-x"], "steps": []})
    said = lab.launcher("attach").stderr
    assert f"{expected}follow it: launcher attach {one} --runs runs" in said, said
    assert lab.launcher("stop", one).returncode == 0
    assert "another submission" not in lab.launcher("status").stdout
