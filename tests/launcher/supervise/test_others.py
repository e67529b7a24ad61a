"""Who stops or looks at the latest submission hears of the others that go on."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.base.errors import UnknownNameError
from launcher.engines import registry
from launcher.record.find import find_submission, list_submissions
from launcher.record.journal import append_event, create_run
from launcher.record.records import Records
from launcher.record.request import RunRequest
from launcher.supervise import others
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
    wait_for(lambda: "another submission" not in lab.launcher("status").stdout, "the end of what started the run")


def test_few_records_of_other_submissions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs the submissions of an engine's queue have."""
    for number in range(4):
        for name in ("001-x", "002-x", "003-x"):
            create_run(tmp_path / f"job{number}" / name, RunRequest(name, 1, "train", ["train"]))
            if (number, name) != (2, "003-x"):
                append_event(tmp_path / f"job{number}" / name, "cancelled")
        write_json(tmp_path / f"job{number}" / "submission.json", {"runs": ["001-x", "002-x", "003-x"], "steps": []})
        time.sleep(0.01)
    monkeypatch.setattr(registry, "queue_of", lambda path: SimpleNamespace(drives=lambda path: True))
    monkeypatch.setattr(others, "MOST_RUNS", 3)
    looked_at: list[str] = []
    look = Records.look
    monkeypatch.setattr(Records, "look", lambda self, name: looked_at.append(name) or look(self, name))
    assert others.going_on(tmp_path / "job3") == ["job2"] and looked_at == ["003-x", "003-x", "002-x"]


def test_an_empty_name_is_not_the_latest_submission(tmp_path: Path) -> None:
    """It is an unset variable of a script, and `stop` would end what nobody named."""
    create_run(tmp_path / "job" / "001-x", RunRequest("001-x", 1, "train", ["train"]))
    write_json(tmp_path / "job" / "submission.json", {"runs": ["001-x"], "steps": []})
    assert find_submission(tmp_path) == tmp_path / "job"
    with pytest.raises(UnknownNameError, match="name of the submission is empty"):
        find_submission(tmp_path, "")
