"""`--host`: the launcher on a server, through a real sshd on loopback and a fake trainer."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.errors import RunError
from launcher.record import lease
from launcher.record.find import find_submission, list_runs, list_submissions
from launcher.record.journal import append_event, create_run, read_status
from launcher.record.locks import is_locked
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED
from launcher.remote import fetch, marked, ssh
from launcher.remote.host import Host, parse_host
from tests.launcher.conftest import Lab, wait_for
from tests.ssh_server import SshServer, missing

TWO = "name: two\nmatrix: {seed: [1, 2]}\nresources: {cpus: 0.1}\n"


@pytest.fixture
def server(lab: Lab) -> Iterator[SshServer]:
    """A server that has data, this launcher and the fake trainer; the lab's launcher finds it."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    made = SshServer(lab.root / "ssh")
    made.make()
    given: dict[str, Any] = lab.arguments()["env"]
    names = ("PYTHONPATH", "FAKE_LOG", "FAKE_LOCKS", "DOCKER_HOST")
    made.environment = {name: given[name] for name in names}
    made.install()
    (made.folder / "data" / "train" / "a").mkdir(parents=True)
    lab.environment["LAUNCHER_SSH"] = made.ssh
    made.start()
    yield made
    made.stop()
    for submission in list_submissions(made.folder / "runs"):  # of a test that failed
        if is_locked(submission / "supervisor.lock"):
            os.kill(lease.read_holder(submission).pid, signal.SIGKILL)  # type: ignore[union-attr]


def plan(server: SshServer, what: dict[str, dict[str, Any]]) -> None:
    server.environment["FAKE_PLAN"] = json.dumps(what)
    server.install()


def there(server: SshServer) -> Path:
    """The latest submission on the server."""
    return find_submission(server.folder / "runs")


def states(submission: Path) -> list[str]:
    return [read_status(path).state for path in list_runs(submission)]


def over(server: SshServer) -> bool:
    root = server.folder / "runs"
    return bool(list_submissions(root)) and all(state in ENDED for state in states(there(server)))


def rsync_with(lab: Lab, options: str) -> None:
    """An rsync before the others on the lab's PATH, which has these options."""
    place = lab.root / "bin" / "rsync"
    place.parent.mkdir(exist_ok=True)
    place.write_text(f'#!/bin/sh\nexec {shutil.which("rsync")} {options} "$@"\n')
    place.chmod(0o755)
    lab.environment["PATH"] = f"{place.parent}{os.pathsep}{os.environ['PATH']}"


def submitted(lab: Lab, server: SshServer, *words: str) -> Path:
    done = lab.launcher("submit", lab.job(TWO), "--host", server.host, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return there(server)


def test_a_submission_runs_on_the_server_and_comes_back(lab: Lab, server: SshServer) -> None:
    plan(server, {"seed1": {"f1": 0.7}, "seed2": {"f1": 0.9}})
    (lab.root / "jobs").mkdir()
    lab.job("# mine\n" + TWO, "jobs/mine.yaml")
    done = lab.launcher("submit", "jobs/mine.yaml", "--host", server.host, "--engine=native")
    assert done.returncode == 0, done.stderr
    submission = there(server)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{submission.name}: 2 runs as native processes")
    assert f"launcher status {submission.name} --host '{server.host}'" in lines[-2]
    assert (submission / "job.yaml").read_text() == "# mine\n" + TWO
    assert json.loads((submission / "submission.json").read_text())["job_file"] == "jobs/mine.yaml"
    assert not lab.runs.exists()
    wait_for(lambda: over(server), "the runs' end")

    shown = lab.launcher("status", "--host", server.host, "--json")
    assert json.loads(shown.stdout)["state"] == "succeeded" and shown.stderr == ""
    assert "✓ succeeded" in lab.launcher("status", "two", "--host", server.host).stdout
    assert lab.launcher("logs", "1", "--host", server.host).stdout.endswith("\nworking\n")

    collected = lab.launcher("collect", "--host", server.host, "--json")
    assert collected.returncode == 0, collected.stderr
    assert [row["val_f1"] for row in json.loads(collected.stdout)["rows"]] == [0.9, 0.7]
    copy = lab.runs / submission.name
    for path in submission.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            assert (copy / path.relative_to(submission)).read_bytes() == path.read_bytes(), path
    assert not list(copy.rglob("*.lock")) and list(copy.rglob(".*")) == [copy / ".state"]
    assert (lab.runs / "champion" / "best_model.ckpt").read_bytes().endswith(b"002-seed2")
    assert json.loads(lab.launcher("status", "--json").stdout)["state"] == "succeeded"
    assert "002-seed2" in lab.launcher("collect").stdout
    again = lab.launcher("collect", "--host", server.host)
    assert again.returncode == 0 and "champion: " in again.stdout, again.stderr


def test_runs_go_on_when_the_connection_is_cut_as_they_begin(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"seconds": 2}})
    process = lab.start("submit", lab.job(TWO), "--host", server.host)
    wait_for(lambda: (server.folder / "runs").is_dir() and list_submissions(server.folder / "runs"), "submission")
    assert server.cut()
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "the connection was lost; runs that were started there continue" in out, out
    assert f"launcher status --host '{server.host}'" in out and "Traceback" not in out
    wait_for(lambda: over(server), "the runs' end")
    assert states(there(server)) == ["succeeded", "succeeded"] and len(lab.journal("begin")) == 2
    assert "succeeded" in lab.launcher("status", "--host", server.host).stdout


def test_a_submission_outlives_the_server_process_that_took_it(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"until": str(lab.root / "go")}})
    submission = submitted(lab, server)
    server.stop()
    (lab.root / "go").touch()
    wait_for(lambda: over(server), "the runs' end")
    assert states(submission) == ["succeeded", "succeeded"]


def test_followed_logs_end_with_the_run(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"until": str(lab.root / "go"), "print": "the last line"}})
    submitted(lab, server)
    process = lab.start("logs", "1", "-f", "--host", server.host)
    assert process.stdout is not None and next(line for line in process.stdout if line == "working\n")
    assert process.poll() is None
    (lab.root / "go").touch()
    told = process.communicate(timeout=60)[0].splitlines()  # over ssh the heading, on stderr, may come at any time
    assert "the last line" in told and len(told) <= 2 and process.returncode == 0


def test_ctrl_c_ends_the_looking_alone(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"until": str(lab.root / "go")}})
    submission = submitted(lab, server)
    process = lab.start("logs", "1", "--follow", "--host", server.host)
    assert process.stdout is not None and next(line for line in process.stdout if line == "working\n")
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and f"\nStopped watching; the runs on {server.host} continue.\n" in out
    following = [p for p in psutil.process_iter(["cmdline"]) if {"logs", "--follow"} <= set(p.info["cmdline"] or [])]
    mine = [p for p in following if "--host" not in p.info["cmdline"] and _in(p, server.folder)]
    psutil.wait_procs(mine, timeout=20)
    assert not any(p.is_running() for p in mine)
    wait_for(lambda: states(submission) == ["running", "running"], "both to go on")
    (lab.root / "go").touch()
    wait_for(lambda: over(server), "the runs' end")


def _in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder
    except psutil.Error:
        return False


def test_stop_and_resume_over_ssh(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"until": str(lab.root / "go")}})
    submission = submitted(lab, server)
    wait_for(lambda: len(lab.journal("begin")) == 2, "both to begin")
    done = lab.launcher("stop", "--host", server.host)
    assert done.returncode == 0 and "stopped: 001-seed1, 002-seed2\n" in done.stdout, done.stderr
    assert states(submission) == ["cancelled", "cancelled"]
    (lab.root / "go").touch()
    wait_for(lambda: not is_locked(submission / "supervisor.lock"), "the supervisor's end")
    done = lab.launcher("resume", "--host", server.host)
    assert done.returncode == 0 and done.stdout.startswith(f"{submission.name}: continuing; 2 runs queued again")
    wait_for(lambda: over(server), "the runs' end")
    assert states(submission) == ["succeeded", "succeeded"]


def test_ctrl_c_in_stop_says_that_the_runs_may_be_stopping(lab: Lab, server: SshServer) -> None:
    plan(server, {"*": {"until": str(lab.root / "go"), "stubborn": True}})
    submission = submitted(lab, server)
    wait_for(lambda: len(lab.journal("begin")) == 2, "both to begin")
    process = lab.start("stop", "--host", server.host)
    wait_for(
        lambda: all((path / "stop.requested").exists() for path in (submission / ".state").glob("0*")), "a request"
    )
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    look = f"See: launcher status --host {shlex.quote(server.host)}\n"
    assert process.returncode == 130, out
    assert f"Stopped waiting; the runs may be stopping on {server.host}. {look}" in out
    (lab.root / "go").touch()
    wait_for(lambda: over(server), "the runs' end")


def test_words_arrive_as_they_were_typed(lab: Lab, server: SshServer) -> None:
    """Spaces, quotes, $, ; and the like, in overrides, settings and paths."""
    odd = """a b'c"d$HOME;`id`\\ & *~!#"""
    word = "data.group_column='" + odd.replace("'", r"\'") + "'"
    data = server.folder / "my data; $(touch oops) 'x'"
    (data / "train" / "a").mkdir(parents=True)
    words = ["--data", data.name, "--cpu", "--set", "env=[A, 'B']", "--runs", "more runs"]
    done = lab.launcher("submit", word, "seed=3", *words, "--host", server.host)
    assert done.returncode == 0, done.stderr
    submission = find_submission(server.folder / "more runs")
    assert f"status {submission.name} --host '{server.host}' --runs 'more runs'" in done.stdout
    request = read_request(list_runs(submission)[0])
    assert word in request.overrides and request.config["seed"] == 3
    assert request.data_dir == str(data) and request.env == ["A", "B"] and request.resources.gpus == 0
    assert not (server.folder / "oops").exists()
    wait_for(lambda: states(submission) == ["succeeded"], "the run's end")
    copied = lab.launcher("collect", "--runs", "more runs", "--host", server.host, "--into", "copies of it")
    assert copied.returncode == 0, copied.stderr
    assert (lab.root / "copies of it" / submission.name / "leaderboard.csv").exists()


def test_the_job_files_name_is_the_users_in_messages(lab: Lab, server: SshServer) -> None:
    job = lab.job("name: x\nmatrix: {modle: [resnet34]}\n")
    done = lab.launcher("submit", job, "--host", server.host)
    assert done.returncode == 64 and "job.yaml:2: " in done.stderr and not (server.folder / "runs").exists()
    done = lab.launcher("submit", "nowhere.yaml", "--host", "unreachable.invalid")
    assert done.returncode == 64 and "nowhere.yaml: no such file" in done.stderr


def test_exit_codes_are_the_servers(lab: Lab, server: SshServer) -> None:
    assert lab.launcher("submit", lab.job(TWO), "--data=nowhere", "--host", server.host).returncode == 65
    done = lab.launcher("status", "--host", server.host)
    assert done.returncode == 1 and "no submission yet" in done.stderr
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 1 and "no submission yet" in done.stderr and not lab.runs.exists()


def test_plan_is_of_the_servers_machine(lab: Lab, server: SshServer) -> None:
    (server.folder / "big.yaml").write_text("{gpus: 8, cpus: 64, memory: 512g}")
    done = lab.launcher("plan", lab.job(TWO), "--machine", "big.yaml", "--json", "--host", server.host)
    shown = json.loads(done.stdout)
    assert [run["resources"]["gpus"] for run in shown["runs"]] == [1, 1] and not (server.folder / "runs").exists()


def test_a_job_file_that_comes_in_part_starts_nothing(lab: Lab) -> None:
    command = [sys.executable, "-m", "launcher", "submit", "job.yaml", "--job-bytes=100"]
    done = subprocess.run(command, input="name: x\n", capture_output=True, **lab.arguments())
    assert done.returncode == 1 and "received 8 of the job file's 100 bytes; nothing was started" in done.stderr
    assert not lab.runs.exists()


def test_an_interrupted_collect_goes_on_where_it_was(lab: Lab, server: SshServer) -> None:
    submission = submitted(lab, server)
    wait_for(lambda: over(server), "the runs' end")
    large = list_runs(submission)[0] / "best.ckpt"
    large.write_bytes(os.urandom(12 * 2**20))
    rsync_with(lab, "--bwlimit=2m")
    process = lab.start("collect", "--host", server.host)
    copy = lab.runs / submission.name
    wait_for(lambda: any(p.stat().st_size > 2**20 for p in copy.glob("001-*/.best.ckpt.*")), "a part of it")
    assert server.cut()
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "the files copied so far are kept; repeat this command to continue" in out, out
    part = copy / large.parent.name / ".partial" / "best.ckpt"
    assert part.stat().st_size > 2**20 and not (copy / large.parent.name / "best.ckpt").exists()
    assert "no submission yet" in lab.launcher("status").stderr  # a part is taken for nothing

    size = part.stat().st_size
    rsync_with(lab, f"--stats --log-file={lab.root}/stats")  # what it sends again
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 0, done.stderr
    assert (copy / large.parent.name / "best.ckpt").read_bytes() == large.read_bytes()
    assert list(copy.rglob(".*")) == [copy / ".state"]
    literal = re.search(r"Literal data: ([\d,]+)", (lab.root / "stats").read_text())
    assert literal and int(literal[1].replace(",", "")) < large.stat().st_size - size // 2


def test_ctrl_c_keeps_what_has_come(lab: Lab, server: SshServer) -> None:
    submission = submitted(lab, server)
    wait_for(lambda: over(server), "the runs' end")
    (submission / "001-seed1" / "best.ckpt").write_bytes(os.urandom(8 * 2**20))
    rsync_with(lab, "--bwlimit=1m")
    process = lab.start("collect", "--host", server.host)
    copy = lab.runs / submission.name
    wait_for(lambda: any(p.stat().st_size > 2**19 for p in copy.glob("001-*/.best.ckpt.*")), "a part of it")
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopped; the files copied so far are kept" in out, out
    assert (copy / "001-seed1" / ".partial" / "best.ckpt").exists()


def test_a_submission_under_way_can_be_collected(lab: Lab, server: SshServer) -> None:
    plan(server, {"seed2": {"until": str(lab.root / "go")}})
    submitted(lab, server)
    wait_for(lambda: states(there(server)) == ["succeeded", "running"], "the first to end")
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 0 and "the submission has not ended there (running)" in done.stderr
    (lab.root / "go").touch()
    wait_for(lambda: over(server), "the runs' end")
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 0 and "has not ended" not in done.stderr
    assert states(lab.submission()) == ["succeeded", "succeeded"]


def test_another_submission_of_that_name_is_not_overwritten(lab: Lab, server: SshServer) -> None:
    submission = submitted(lab, server)
    wait_for(lambda: over(server), "the runs' end")
    (lab.runs / submission.name).mkdir(parents=True)
    (lab.runs / submission.name / "submission.json").write_text("{}")
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 1 and "another submission has the same name" in done.stderr
    assert "--into DIR" in done.stderr and len(list((lab.runs / submission.name).iterdir())) == 1
    assert lab.launcher("collect", "--into", "elsewhere").returncode == 64


def test_another_version_there_is_told(lab: Lab, server: SshServer) -> None:
    server.install(version="9.9.9")
    done = lab.launcher("plan", lab.job(TWO), "--json", "--host", server.host)
    assert len(json.loads(done.stdout)["runs"]) == 2
    assert done.stderr == "note: the launcher on server is version 9.9.9, this one 0.1.0\n"


def test_a_server_without_a_launcher_is_one_clear_error(lab: Lab, server: SshServer) -> None:
    (server.folder / ".venv" / "bin" / "launcher").write_text("#!/nonexistent/python\n")
    done = lab.launcher("status", "--host", server.host)
    assert done.returncode == 1 and "does not start; run there: make install" in done.stderr
    shutil.rmtree(server.folder / ".venv")
    done = lab.launcher("status", "--host", server.host)
    assert done.returncode == 1 and "no launcher found: neither .venv/bin/launcher" in done.stderr
    assert "--host server:DIR" in done.stderr and "Traceback" not in done.stderr
    done = lab.launcher("status", "--host", f"{server.host}/nowhere")
    assert done.returncode == 64 and "nowhere; give the project's" in done.stderr


def test_the_folder_on_the_server_may_come_from_the_environment(lab: Lab, server: SshServer) -> None:
    lab.environment["LAUNCHER_HOST_DIR"] = str(server.folder)
    assert "no submission yet" in lab.launcher("status", "--host", "server").stderr


@pytest.mark.parametrize("fault", ["key", "unknown", "changed", "down", "name", "ssh"])
def test_what_ssh_cannot_do_is_one_clear_error(lab: Lab, server: SshServer, fault: str) -> None:
    host, said = "server", ""
    match fault:
        case "key":
            shutil.copy(server.root / "stranger.pub", server.root / "authorized")
            said = "the login was refused", "ssh-copy-id server"
        case "unknown":
            (server.root / "known").write_text("")
            said = "host key is unknown", f"{server.ssh} server"
        case "changed":
            server.known("stranger")
            said = "host key differs", "ssh-keygen -R"
        case "down":
            server.stop()
            said = "cannot be reached", "Connection refused"
        case "name":
            host, said = "no-such-server.invalid", ("no such server", "~/.ssh/config")
        case "ssh":
            lab.environment["LAUNCHER_SSH"] = "no-ssh-here"
            said = "no-ssh-here: --host needs ssh", "apt-get install openssh-client"
    done = lab.launcher("status", "--host", host)
    assert done.returncode == (64 if fault == "name" else 1) and done.stdout == ""
    assert done.stderr.startswith("error: ") and all(each in done.stderr for each in said), done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_rsync_missing_here_or_there_is_one_clear_error(lab: Lab, server: SshServer) -> None:
    submitted(lab, server)
    wait_for(lambda: over(server), "the runs' end")
    bare = lab.root / "bare"
    bare.mkdir()
    for name in ("ssh", "sh", "cat"):
        (bare / name).symlink_to(str(shutil.which(name)))
    # sshd takes the PATH of its sessions from its own configuration.
    with (server.root / "sshd_config").open("a") as config:
        config.write(f"SetEnv PATH={bare}\n")
    server.stop()
    server.start()
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 1 and "also needs rsync on the server" in done.stderr, done.stderr
    lab.environment["PATH"] = str(bare)
    done = lab.launcher("collect", "--host", server.host)
    assert done.returncode == 1 and "needs rsync, which is not installed here" in done.stderr


def test_nothing_is_left_of_a_connection(lab: Lab, server: SshServer) -> None:
    before = set(Path("/tmp").glob("launcher-*"))
    process = lab.start("logs", "x", "--host", server.host)
    process.communicate(timeout=60)
    # Waited for, since other tests open connections of their own at the same time.
    wait_for(lambda: set(Path("/tmp").glob("launcher-*")) <= before, "the end of the folder of its socket")
    submitted(lab, server)
    process = lab.start("logs", "1", "-f", "--host", server.host)
    process.kill()  # even a launcher that is killed leaves no connection behind
    process.communicate(timeout=60)
    wait_for(lambda: not _connections(server), "the connection's end")


def _connections(server: SshServer) -> list[psutil.Process]:
    assert server.process is not None
    return psutil.Process(server.process.pid).children()


@pytest.mark.parametrize(
    ("text", "destination", "folder"),
    [
        ("gpu", "gpu", "."),
        ("me@gpu.example.org", "me@gpu.example.org", "."),
        ("me@gpu:", "me@gpu", "."),
        ("me@gpu:a b/c", "me@gpu", "a b/c"),
        ("gpu:~/project", "gpu", "project"),
        ("gpu:~", "gpu", "."),
        ("me@[fe80::1%eth0]:/p", "me@fe80::1%eth0", "/p"),
        ("-oProxyCommand=x", None, ""),
        ("me@-x", None, ""),
        ("", None, ""),
        ("a b", None, ""),
    ],
)
def test_hosts(text: str, destination: str | None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCHER_HOST_DIR", raising=False)
    if destination is None:
        with pytest.raises(click.BadParameter):
            parse_host(text)
        return
    host = parse_host(text)
    assert (host.destination, host.folder) == (destination, folder)


def test_every_shell_runs_the_script_as_it_is(tmp_path: Path) -> None:
    odd = """it's $HOME "and"; \\ more"""
    (tmp_path / "launcher").write_text('#!/bin/sh\n[ "$1" = --version ] && echo 0.1.0 || printf "%s|" "$@"\n')
    (tmp_path / "launcher").chmod(0o755)
    script = ssh.launcher_script(Host("h", "", "h", str(tmp_path)), ["x", odd, ""])
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    for shell in filter(None, map(shutil.which, ("sh", "dash", "bash", "zsh", "ksh"))):
        line = ssh.session(_no_connection(), script)[-1]
        done = subprocess.run([shell, "-c", line], env=environment, capture_output=True, text=True)
        assert done.stdout == f"x|{odd}||" and done.stderr == "", shell


def _no_connection() -> ssh.Connection:
    return ssh.Connection(Host("h", "", "h", "."), [], None)  # type: ignore[arg-type]


def test_what_a_login_shell_prints_is_no_answer(lab: Lab, server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session prints before its command, as a .bashrc with an echo does; once without an end of the line."""
    shell = lab.root / "noisy"
    shell.write_text('#!/bin/sh\necho "Welcome: to the cluster!"\necho "$2"\nprintf "{}"\nexec sh "$@"\n')
    shell.chmod(0o755)
    config = server.root / "sshd_config"
    server.stop()
    config.write_text(f'{config.read_text()}ForceCommand {shell} -c "$SSH_ORIGINAL_COMMAND"\n')
    server.start()
    done = lab.launcher("submit", lab.job(TWO), "--host", server.host)
    assert done.returncode == 0 and "Welcome" not in done.stdout, done.stdout + done.stderr
    name = there(server).name
    assert done.stdout.startswith(f"{name}: 2 runs") and f"launcher collect {name} --host" in done.stdout
    wait_for(lambda: over(server), "the end of the runs")
    shown = lab.launcher("status", "--json", "--host", server.host)
    assert json.loads(shown.stdout)["submission"] == name
    logs = lab.launcher("logs", "1", "--tail", "1", "--host", server.host)
    assert logs.stdout == "working\n", logs
    collected = lab.launcher("collect", "--json", "--host", server.host)
    assert collected.returncode == 0, collected.stderr
    assert json.loads(collected.stdout)["submission"] == name
    assert [path.name for path in list_runs(lab.runs / name)] == ["001-seed1", "002-seed2"]


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=6), st.binary(max_size=8), st.binary(max_size=20))
def test_the_marker_is_found_however_its_bytes_arrive(pieces: list[bytes], before: bytes, printed: bytes) -> None:
    marker = marked.Marker()
    assert marker.line not in marker.script
    source, sink = os.pipe()
    whole = before + f"\n{marker.line}\n".encode() + b"".join(pieces) + printed
    got: list[bytes] = []
    os.write(sink, whole)
    os.close(sink)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marked, "PIECE", 7)
        marked.relay(source, marker.line, got.append)
    os.close(source)
    assert b"".join(got) == b"".join(pieces) + printed == marked.after(whole, marker.line)


def test_a_copy_has_no_links_out_of_the_submission(lab: Lab, server: SshServer) -> None:
    """Nor pipes, nor permissions of a program that runs as its owner. The launcher's own files of the runs are there."""
    run_dir = server.folder / "runs" / "sub" / "001-a"
    create_run(run_dir, RunRequest("001-a", 1, "train", ["train"]))
    append_event(run_dir, "cancelled")
    (run_dir.parent / "submission.json").write_text('{"name": "sub", "engine": "native"}')
    (run_dir / "best.ckpt").symlink_to("/etc/passwd")
    (run_dir / "up").symlink_to("../../../data")
    (run_dir / "inside").symlink_to("log.txt")
    os.mkfifo(run_dir / "metrics.json")
    (run_dir / "log.txt").write_text("log")
    (run_dir / "log.txt").chmod(0o4755)
    done = lab.launcher("collect", "sub", "--host", server.host)
    assert done.returncode == 0, done.stderr
    copy = lab.runs / "sub" / "001-a"
    assert sorted(path.name for path in copy.iterdir()) == ["inside", "log.txt"]
    assert (copy / "log.txt").stat().st_mode & 0o7000 == 0 and read_status(copy).state == "cancelled"


def test_a_server_cannot_name_a_folder_that_is_no_submission(tmp_path: Path) -> None:
    """Such as the champion's: its files would be overwritten."""
    champion = tmp_path / "champion"
    champion.mkdir()
    (champion / "best_model.ckpt").write_text("mine")
    with pytest.raises(RunError, match="champion: is no submission, and one on server has its name"):
        fetch._prepare(parse_host("server"), champion, b"{}")
    assert [path.name for path in champion.iterdir()] == ["best_model.ckpt"]
    fetch._prepare(parse_host("server"), tmp_path / "job-1", b"{}")
    fetch._prepare(parse_host("server"), tmp_path / "job-1", b"{}")  # continues
    assert [path.name for path in (tmp_path / "job-1").iterdir()] == [fetch.HIDDEN]


@pytest.mark.parametrize("printed", [b"[" * 100_000, b"[]", b"7", b"\xff", b"", b'{"submission": "x"}'])
def test_an_answer_that_is_no_status_is_one_clear_error(printed: bytes) -> None:
    with pytest.raises(RunError, match="server: cannot read the status"):
        fetch._understood(parse_host("server"), printed)


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+0000", "9999-99-99", 7, None])
def test_a_copy_is_completed_whatever_its_date_is(tmp_path: Path, created: object) -> None:
    (tmp_path / fetch.HIDDEN).write_text("{}")
    fetch._complete(tmp_path, json.dumps({"created": created}).encode())
    assert (tmp_path / "submission.json").exists()
