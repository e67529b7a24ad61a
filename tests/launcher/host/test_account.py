"""Cores and host memory across submissions and users: what was promised, to whom, and who waits for it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.base.errors import RunError
from launcher.base.sizes import GIB
from launcher.engines import registry, shares
from launcher.host import account, gpu_locks
from launcher.host.account import Share
from launcher.host.machine import Machine, here
from launcher.record import waiting
from launcher.record.find import find_run, list_submissions
from tests.launcher.conftest import REPOSITORY, Lab, seeds, wait_for

HOST = Machine("host", 8, 24 * GIB, declared=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(gpu_locks, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(account, "_host", lambda: (8.0, 24 * GIB))
    yield tmp_path / "locks"


def elsewhere(folder: Path, program: str, user: int | None = None) -> subprocess.Popen[str]:
    """A process that has run the program and waits for the end of its input; of another user if this one is root."""
    lines = [
        "import os, sys, tempfile",
        "from pathlib import Path",
        "from launcher.host import account, gpu_locks",
        *([f"os.setgid({user}); os.setuid({user})"] if user is not None and os.getuid() == 0 else []),
        f"gpu_locks.LOCKS = Path({str(folder)!r})",
        program,
        "print('ready', flush=True)",
        "sys.stdin.read()",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdin=-1, stdout=-1, text=True, env=environment, cwd="/"
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_share_lasts_as_long_as_any_process_that_inherited_it(folder: Path) -> None:
    lock = account.claim(Share("/runs/one/001-a", cpus=2, memory=3))
    child = subprocess.Popen(["sleep", "100"], pass_fds=[lock.descriptor])
    lock.close()
    (share,) = account.shares()
    assert (share.directory, share.cpus, share.memory, share.locked) == ("/runs/one/001-a", 2, 3, True)
    child.kill()
    child.wait()
    assert account.shares() == []
    again = account.claim(Share("/runs/one/002-b"))
    assert [path.name for path in folder.iterdir()] == [f"share-{os.getuid()}-0.lock"], "files are used again"
    again.close()


def test_a_killed_launcher_leaves_nothing_behind(folder: Path) -> None:
    program = (
        "lock = account.claim(account.Share('/runs/one/001-a', 1, 2)); other = account.exclusive(); other.__enter__()"
    )
    process = elsewhere(folder, program)
    with account.exclusive(patience=0.05) as mine:
        assert not mine and len(account.shares()) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    with account.exclusive() as mine:
        assert mine and account.shares() == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_folder_and_files_of_another_user_are_used(folder: Path, umask: int) -> None:
    folder.parent.chmod(0o1777)
    for path in folder.parents:  # pytest's own folders are private
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    claim = "lock = account.claim(account.Share('/runs/{}/001-a', 1, 2))"
    take = f"os.umask({umask})\nwith account.exclusive() as mine: assert mine\n" + claim
    gpu = "\nassert (gpu_locks.acquire('gpu{}', 'x') is not None) is {}; gpu_locks.acquire('gpu{}', 'x')"
    first = elsewhere(folder, take.format("one") + gpu.format(0, True, 0), user=65534)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    second = elsewhere(folder, take.format("two") + gpu.format(1, True, 1), user=65533)
    with account.exclusive() as mine:
        assert mine
    lock = account.claim(Share("/runs/three/001-a"))
    assert sorted(share.directory for share in account.shares()) == [
        f"/runs/{n}/001-a" for n in ("one", "three", "two")
    ]
    assert any(str(share).startswith("one/001-a of ") for share in account.shares())
    for process in (first, second):
        process.kill()
        process.wait()
    lock.close()
    assert account.shares() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can write another user's file")
def test_another_users_private_file_with_the_name_of_a_share_is_passed_over(folder: Path) -> None:
    """65534 put a file that only 65534 may open where 65533's share would be."""
    for path in folder.parents:
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    os.close(gpu_locks.open_folder())
    for name in ("share-65533-0", "gpu0"):
        (folder / f"{name}.lock").write_text("x")
        (folder / f"{name}.lock").chmod(0o600)
        os.chown(folder / f"{name}.lock", 65534, 65534)
    program = (
        "account.check(); lock = account.claim(account.Share('/runs/one/001-a', 1, 2))\n"
        "try: gpu_locks.open_lock('gpu0')\n"
        "except gpu_locks.NoLockFileError as error: assert str(error).endswith('/gpu0.lock: cannot be opened; remove it')\n"
        "else: raise SystemExit('no error')"
    )
    process = elsewhere(folder, program, user=65533)
    assert [(share.file, share.uid, share.locked) for share in account.shares()] == [
        ("share-65533-1.lock", 65533, True)
    ]
    assert (folder / "share-65533-0.lock").read_text() == "x"
    process.kill()
    process.wait()


def test_what_lies_in_the_folder_is_not_believed(folder: Path, tmp_path: Path) -> None:
    uid = os.getuid()
    lock = account.claim(Share("/runs/one/001-a", 1))
    share = {**json.loads((folder / f"share-{uid}-0.lock").read_text()), "engine": "docker"}
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.mkfifo(folder / f"share-{uid}-1.lock")
    (folder / f"share-{uid}-2.lock").symlink_to(secret)
    os.link(secret, folder / f"share-{uid}-3.lock")
    for number, content in enumerate(
        ("", "{", "null", "[" * 100_000, *(json.dumps({**share, "cpus": value}) for value in (-1, "x", None, [])),
         json.dumps(share).replace('"cpus": 1', '"cpus": NaN'), json.dumps({**share, "memory": -1})), start=5
    ):  # fmt: skip
        (folder / f"share-{uid}-{number}.lock").write_text(content)
    (folder / f"share-{uid + 1}-0.lock").write_text(json.dumps(share))  # of a user that did not write it
    assert [share.directory for share in account.shares()] == ["/runs/one/001-a"]
    second = account.claim(Share("/runs/one/002-b"))
    assert len(account.shares()) == 2, "it takes the next file"
    second.close()
    (folder / "gpu0.lock").symlink_to(secret)
    with pytest.raises(OSError, match=r"gpu0\.lock: not a regular file; remove it"):
        gpu_locks.acquire("gpu0", "x")
    assert secret.read_text() == "secret" and secret.stat().st_mode & 0o777 == 0o600
    lock.close()


@pytest.mark.parametrize("kind", ["link", "file", "private"])
def test_a_folder_that_cannot_be_used_is_an_error_with_its_remedy(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / "target").mkdir()
        folder.symlink_to(tmp_path / "target")
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o755)
        if os.getuid() == 0:
            for path in folder.parents:
                if path != Path("/"):
                    path.chmod(path.stat().st_mode | 0o055)
            program = "try: account.claim(account.Share('/x/y'))\nexcept OSError as error: print(error)\nelse: print('no error')"
            process = subprocess.run(
                [sys.executable, "-c", "import os; from pathlib import Path; from launcher.host import account, gpu_locks\n"
                 f"gpu_locks.LOCKS = Path({str(folder)!r}); os.setgid(65534); os.setuid(65534)\n{program}"],
                capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
            assert (
                f"belongs to root and has mode 755; root or root can change that: chmod 1777 {folder}" in process.stdout
            )
        return
    with pytest.raises(OSError, match="remove it"):
        account.claim(Share("/runs/one/001-a"))
    with pytest.raises(RunError, match="remove it"):
        account.check()
    assert kind == "file" or not list((tmp_path / "target").iterdir())


def test_a_part_of_the_host_is_shared_with_launchers_of_the_same_part(folder: Path) -> None:
    whole = Machine("host", 8, 24 * GIB)
    assert account.pool_of(whole) == "" and account.pool_of(HOST) != ""
    part = Machine("host", 2, 6 * GIB)  # by a control group
    in_part = Share("/a/b", 1, 4 * GIB, pool=account.pool_of(part))
    beside = Share("/c/d", 5, 16 * GIB)
    assert account.used([in_part], part) == (1, 4 * GIB)
    assert account.used([in_part, beside], whole) == (6, 20 * GIB)
    assert account.used([beside], part) == (0, 0), "the rest of the host has room for it"
    assert account.used([Share("/c/d", 7, 22 * GIB)], part) == (1, 4 * GIB), "it takes from the part"
    assert account.used([in_part, beside, beside], part) == (2, 6 * GIB), "never more than all"
    larger = Machine("described", 16, 64 * GIB, declared=True)
    assert account.used([Share("/a/b", 9, 30 * GIB, pool=account.pool_of(larger))], larger) == (9, 30 * GIB)


def test_what_others_wrote_is_one_short_line(folder: Path) -> None:
    """Else another user could write lines of a table, or a megabyte, into the reason why a run waits."""
    spoof = "x\n002-seed1  ✓ succeeded\r\x1b[2J\u2028" + "y" * 10_000
    assert str(Share(f"/runs/{spoof}", uid=0)).startswith("runs/x 002-seed1 ✓ succeeded yyy")
    lock = gpu_locks.acquire("gpu0", spoof)
    assert lock is not None
    for text in (str(Share(f"/runs/{spoof}", uid=0)), gpu_locks.why_taken("gpu0", None) or ""):
        assert text.isprintable() and 100 < len(text) < 250
    lock.close()


def test_the_message_names_the_holders_the_largest_first() -> None:
    user = account._user(os.getuid())
    held = [Share(f"/runs/job/00{n}-\x1b[2Jx", cpus=n, memory=n * GIB, uid=os.getuid()) for n in range(6)]
    said = account.why_not(0, 10 * GIB, held, HOST)
    names = ", ".join(f"job/00{n}-x of {user}" for n in (5, 4, 3))
    assert said == f"it needs 10 GiB of memory; 15 GiB of 24 GiB are used by {names} and 2 more"
    assert account.why_not(0, 9 * GIB, held, HOST) is None
    said = account.why_not(3, 0, held[2:3], HOST, own=(4, 0))
    assert said == f"it needs 3 cores; 2 of 8 are used by job/002-x of {user}, 4 by runs of this submission"


def test_a_container_counts_as_long_as_its_engine_runs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher held the lock, and was killed."""
    answers: list[set[str] | None] = [{"/runs/one/001-a"}, None, {"/runs/one/001-a"}, set()]
    engine = registry.engine("docker")
    monkeypatch.setattr(type(engine), "still_runs", lambda self, directories: answers.pop(0))
    account.claim(Share("/runs/one/001-a", 1, 2, pool="part", engine="docker")).close()
    lock = account.claim(Share("/runs/two/001-a", 1, 2, engine="docker"))
    assert {share.directory for share in shares.in_progress()} == {"/runs/one/001-a", "/runs/two/001-a"}
    assert [share.directory for share in shares.in_progress()] == ["/runs/two/001-a"], "the engine does not answer"
    adopted = account.reclaim(Path("/runs/one/001-a"), "docker", 1, 2)
    assert {(share.pool, share.locked) for share in account.shares()} == {("part", True), ("", True)}
    adopted.close()
    assert len(shares.in_progress()) == 2
    assert [share.directory for share in shares.in_progress()] == ["/runs/two/001-a"]
    assert len(account.shares()) == 1, "what the engine has ended is removed"
    account.forget(lock)
    lock.close()
    assert account.shares() == [] and answers == []


def overlap(lab: Lab) -> int:
    spans = []
    for begin in lab.journal("begin"):
        end = next(e for e in lab.journal("end") if e["pid"] == begin["pid"])
        spans.append((begin["time"], end["time"]))
    return sum(a[0] < b[1] and b[0] < a[1] for a, b in itertools.combinations(spans, 2))


@pytest.mark.parametrize("resources", ["{memory: 40g, cpus: 1}", "{cpus: 9}"])
def test_two_submissions_do_not_use_the_same_memory_or_cores(lab: Lab, resources: str) -> None:
    """Each run alone fits, two do not: they take turns, and both submissions end."""
    lab.plan = {"*": {"seconds": 0.5}}
    job, machine = lab.job(seeds(2, f"resources: {resources}\n")), lab.machine()
    both = [lab.start("submit", job, machine, f"--set=name={name}") for name in ("one", "two")]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(lab.journal("end")) == 4 and overlap(lab) == 0


def test_a_run_that_waits_says_for_whom_to_everybody_who_looks(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    machine = lab.machine()
    first = lab.start("submit", lab.job(seeds(1, "resources: {memory: 40g, cpus: 1}\n")), machine, "--set=name=first")
    wait_for(lambda: lab.journal("begin"), "the first run")
    held = lab.submission().name
    more = "resources: {memory: 40g, cpus: 1}\nafter: [{name: out, step: predict, from: {top: 1}}]\n"
    job = lab.job(seeds(1, more), "second.yaml")
    done = lab.launcher("submit", job, machine, "--set=name=second", "--detach")
    assert done.returncode == 0, done.stderr
    second = next(path for path in list_submissions(lab.runs) if path.name.startswith("second"))
    user = account._user(os.getuid())
    reason = f"waiting: it needs 40 GiB of memory; 40 GiB of 64 GiB are used by {held}/001-resnet34 of {user}"
    wait_for(lambda: waiting.read(second), "the reason")
    shown = json.loads(lab.launcher("status", second.name, "--json").stdout)
    assert shown["waits"] == reason
    assert [run["reason"] for run in shown["runs"]] == [reason, ""], "the step waits for its run alone"
    assert (
        reason in " ".join(lab.launcher("status", second.name).stdout.split())
        or "waiting" in lab.launcher("status", second.name).stdout
    )
    assert reason in lab.launcher("logs", f"{second.name}/1").stderr
    for command in (["attach", second.name], ["status", second.name, "--watch"]):
        process = lab.start(*command)
        assert process.stdout is not None
        assert any("it needs 40 GiB" in line for line in iter(process.stdout.readline, "")), command
        process.kill()
    first.kill()
    first.wait()
    assert waiting.read(second) == reason, "the run goes on without its launcher, and keeps its share"
    gate.touch()
    wait_for(lambda: lab.states(second) == {"resnet34": "succeeded", "out": "succeeded"}, "the second submission")
    assert overlap(lab) == 0
    assert json.loads(lab.launcher("status", second.name, "--json").stdout)["waits"] is None


def test_a_killed_run_gives_its_share_back(lab: Lab) -> None:
    lab.plan = {"*": {"until": str(lab.root / "never")}}
    machine = lab.machine()
    first = lab.start("submit", lab.job(seeds(1, "resources: {cpus: 9}\n")), machine, "--set=name=first")
    wait_for(lambda: lab.journal("begin"), "the first run")
    run = find_run(lab.runs, "1")
    lab.plan = {}
    second = lab.start("submit", lab.job(seeds(1, "resources: {cpus: 9}\n"), "b.yaml"), machine, "--set=name=second")
    assert second.stdout is not None
    next(line for line in second.stdout if "9 of 16 are used by first-" in line)
    refused = lab.launcher("exec", str(find_run(lab.runs, "1")))
    assert refused.returncode == 1 and "it needs 9 cores; " in refused.stderr
    executor = wait_for(lambda: lab.status(str(run)).figures.get("exec_pid"), "word of it")
    for process in (first.pid, executor, lab.journal("begin")[0]["pid"]):
        with contextlib.suppress(ProcessLookupError):  # the trainer ends by itself when its `launcher exec` has ended
            os.kill(process, signal.SIGKILL)
    assert second.wait(60) == 0


def test_gpus_of_others_are_told_to_everybody_who_looks(lab: Lab) -> None:
    lock = gpu_locks.acquire("gpu0", "somebody's run")
    assert lock is not None
    assert lab.launcher("submit", lab.job(seeds(1)), lab.machine(gpus=1), "--detach").returncode == 0
    wait_for(lambda: waiting.read(lab.submission()), "the reason")
    (run,) = json.loads(lab.launcher("status", "--json").stdout)["runs"]
    assert run["reason"] == "waiting: GPU 0 is held by somebody's run"
    lock.close()
    wait_for(lambda: set(lab.states().values()) == {"succeeded"}, "its end")
    assert not (lab.submission() / ".state" / waiting.FILE).exists()


def test_submit_says_at_once_that_no_run_could_start(lab: Lab) -> None:
    lab.environment = {"FAKE_LOCKS": str(lab.root / "locks")}
    (lab.root / "locks").touch()
    refused = lab.launcher("submit", lab.job(seeds(1)), lab.machine())
    assert refused.returncode == 1 and refused.stderr.startswith(f"error: {lab.root}/locks: Not a directory; ")
    assert refused.stderr.endswith("so remove it\n") and not list(lab.runs.glob("[!.]*"))


def test_a_full_disk_is_told_even_if_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = tmp_path / "runs" / "job"
    submission.mkdir(parents=True)
    assert waiting.read(submission) is None
    monkeypatch.setattr(waiting, "ROOM", 2**60)
    said = waiting.read(submission)
    assert said is not None and said.startswith(f"{tmp_path}/runs: no space left (")


def test_news_of_the_same_reason_are_no_news() -> None:
    assert waiting.same("no space left (1.2 MiB)", "no space left (980 MiB)") and waiting.same(None, None)
    assert not waiting.same(None, "x") and not waiting.same("GPU 0 is held by a", "GPU 0 is held by b")


def test_the_account_is_of_this_host(folder: Path) -> None:
    """A launcher on this machine, as it is, is in the pool of the whole host or of a part of it."""
    machine = here()
    lock = account.claim(account.share_of(Path("/runs/one/001-a"), 1, 2, machine))
    assert account.used(account.shares(), machine) == (1, 2)
    lock.close()
