"""A container that attacks the launcher through its run directory; the launcher is root, or this user."""

from __future__ import annotations

import json
import os

from launcher.record.find import list_runs
from tests.launcher.boxes import job, journal
from tests.launcher.conftest import Lab, wait_for
from tests.launcher.hostile.stage import SECRET, Watch

NAMES = (
    "metrics.json", "progress.json", "val_predictions.npz", "log.txt", "best.ckpt", "last.ckpt", "history.csv",
    "config.yaml", "ensemble.json", "run.json", "status.json", "events.jsonl", "exec.lock", "stop.requested",
)  # fmt: skip


def test_a_container_reaches_nothing_on_the_host(box: Lab, image: str) -> None:
    victim = box.root / "victim"
    victim.write_text(SECRET)
    victim.chmod(0o600)
    before, watch = victim.stat(), Watch(victim)
    kept = ("best.ckpt", "metrics.json")  # so that one run succeeds
    box.plan = {
        "*": {"until": "/data/gate"},
        "seed0": {
            "exchange": [[n for n in NAMES if n not in kept], str(victim)],
            "last_links": {"best.ckpt": str(victim)},
        },
        "seed1": {"exchange": [NAMES, str(victim)]},
    }
    process = box.start("submit", job(box, image, 2, "retry: {attempts: 1}\n"), "--engine", "docker", box.machine())
    wait_for(lambda: len(journal(box, "begin")) == 2, "both runs")
    printed = ""
    for words in (["status", "--json"], ["logs", "1"], ["collect"]):
        done = box.launcher(*words)
        printed += done.stdout + done.stderr
    (box.root / "data" / "gate").touch()
    printed += process.communicate(timeout=120)[0]
    for words in (["logs", "2"], ["collect", "--json"], ["prune", "--yes"]):
        done = box.launcher(*words)
        printed += done.stdout + done.stderr
    assert not watch.events() and victim.read_text() == SECRET
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert "for root alone" not in printed and "987654" not in printed
    assert "error: unexpected" not in printed  # the trainer's own tracebacks are in its log
    assert all(run["state"] != "running" for run in json.loads(box.launcher("status", "--json").stdout)["runs"])
    for path in box.runs.rglob("*"):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            assert b"for root alone" not in path.read_bytes(), path
    assert "best.ckpt" in box.status("1").reason and len(list_runs(box.submission())) == 2  # a link is no result
