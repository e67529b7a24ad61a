"""Commands that only look: status --watch, attach, top, replay, and what the shell completes."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from launcher.cli import options, tables, top, watch
from launcher.engines.host_memory import HostMemory
from launcher.host import gpu_locks, machine
from launcher.record import lease
from launcher.record.find import list_runs
from launcher.record.folders import create_state, state_folder
from launcher.record.journal import Status, append_event, create_run
from launcher.record.locks import run_locked
from launcher.record.request import RunRequest
from tests.launcher.conftest import REPOSITORY, Lab, wait_for

JOB = "name: looked\nmatrix:\n  seed: [1, 2]\nresources: {cpus: 1}\nmax_parallel: 2\n"


def under_way(lab: Lab, plan: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """A submission of two runs that end when the file `go` is there."""
    lab.plan = {"*": {"until": str(lab.root / "go"), "megabytes": 60, **(plan or {})}}
    process = lab.start("submit", lab.job(JOB), "--engine", "native")
    wait_for(lambda: len(lab.journal("begin")) == 2, "both runs")
    wait_for(lambda: set(lab.states().values()) == {"running"}, "both in the journals")
    return process


def beat(lab: Lab) -> None:
    """The heartbeat of a trainer in the middle of its work."""
    for run_dir in list_runs(lab.submission()):
        figures = {"epoch": 3, "epochs": 50, "images_per_second": 81.25, "eta_seconds": 95.0, "best_f1": 0.875}
        text = json.dumps({"time": time.time(), "device_memory_bytes": 3 * 2**30, **figures})
        (run_dir / "progress.json").write_text(text)


def test_attach_follows_to_the_end_with_submits_lines_and_exit_code(lab: Lab) -> None:
    submit = under_way(lab)
    attached = lab.start("attach")
    assert attached.stdout is not None
    out = "".join(attached.stdout.readline() for _ in range(3))  # where each run stands
    (lab.root / "go").touch()
    out, told = out + attached.communicate(timeout=60)[0], submit.communicate(timeout=60)[0]
    assert attached.returncode == submit.returncode == 0
    for line in re.findall(r"\d\d:\d\d:\d\d  (001-\S+ +succeeded  val_f1 [\d.]+)", told):
        assert line in out
    assert "002-seed2" in out and "val F1" in out and "running" in out


def test_attach_ends_as_submit_does_when_a_run_fails_and_names_its_log(lab: Lab) -> None:
    submit = under_way(lab, {"exit": 3})
    attached = lab.start("attach", "looked")
    (lab.root / "go").touch()
    out = attached.communicate(timeout=60)[0]
    assert attached.returncode == submit.wait(60) == 1
    assert "not succeeded: 001-seed1, 002-seed2" in out and f"launcher logs {lab.submission().name}/001-seed1" in out


def test_ctrl_c_detaches_and_the_runs_go_on(lab: Lab) -> None:
    submit = under_way(lab)
    attached = lab.start("attach")
    assert attached.stdout is not None and "Ctrl-C stops only the watching" in attached.stdout.readline()
    attached.send_signal(signal.SIGINT)
    attached.communicate(timeout=30)
    assert set(lab.states().values()) == {"running"}
    again = lab.start("attach")
    (lab.root / "go").touch()
    again.communicate(timeout=60)
    assert (submit.wait(60), again.returncode) == (0, 0)


def test_attach_to_a_stopped_submission_ends_with_130(lab: Lab) -> None:
    submit = under_way(lab)
    attached = lab.start("attach")
    assert attached.stdout is not None
    attached.stdout.readline()
    submit.send_signal(signal.SIGINT)
    out = attached.communicate(timeout=60)[0]
    assert (submit.wait(60), attached.returncode) == (130, 130) and "stopped; continue with: launcher resume" in out


def test_attach_to_what_nobody_drives_says_resume(lab: Lab) -> None:
    submit = under_way(lab)
    submit.kill()
    submit.wait()
    done = lab.launcher("attach")
    assert done.returncode == 1
    assert (
        f"no launcher is running this submission; continue with: launcher resume {lab.submission().name}" in done.stderr
    )
    assert "no submission yet" in lab.launcher("attach", "--runs", "none").stderr


def test_status_watch_prints_a_table_for_each_change_where_there_is_no_terminal(lab: Lab) -> None:
    submit = under_way(lab)
    beat(lab)
    watching = lab.start("status", "--watch")
    assert watching.stdout is not None
    first = "".join(itertools.takewhile(lambda line: line.strip() != "2 running", watching.stdout))
    for word in ("3/50", "81.2", "1 min 35 s", "0.8750", "3 GiB", "▶ running"):
        assert word in first, (word, first)
    sizes = [int(float(size)) for size in re.findall(r"([\d.]+) MiB", first)]
    assert len(sizes) == 2 and min(sizes) >= 60  # of the whole process tree, the fake trainer's ballast in it
    (lab.root / "go").touch()
    rest = watching.communicate(timeout=60)[0]
    assert watching.returncode == 0 and "looked-" in rest and "2 succeeded" in rest
    submit.wait(60)
    assert lab.launcher("status", "--watch").stdout.count("succeeded") >= 3  # over: one table


def test_status_watch_redraws_on_a_terminal_and_ends_by_itself(lab: Lab) -> None:
    submit = under_way(lab)
    beat(lab)
    outer, inner = pty.openpty()
    arguments = lab.arguments()
    arguments["env"] = {**arguments["env"], "COLUMNS": "180", "TERM": "xterm"}
    command = [sys.executable, "-m", "launcher", "status", "--watch"]
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, **arguments)
    os.close(inner)
    shown = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([outer], [], [], 0.2)[0]:
            try:
                piece = os.read(outer, 65536)
            except OSError:  # its end
                break
            shown += piece.decode(errors="replace")
        if "3/50" in shown:
            (lab.root / "go").touch()
    os.close(outer)
    assert process.wait(30) == 0 and submit.wait(60) == 0
    assert "81.2" in shown and "2 succeeded" in shown and "\x1b[" in shown


def test_ctrl_c_ends_every_kind_of_looking_in_the_same_way(lab: Lab) -> None:
    under_way(lab)
    for words in (("status", "-w"), ("attach",), ("logs", "1", "-f")):
        viewer = lab.start(*words)
        assert viewer.stdout is not None
        viewer.stdout.readline()
        viewer.send_signal(signal.SIGINT)
        out = viewer.communicate(timeout=30)[0]
        assert viewer.returncode == 130 and out.endswith("\nStopped watching; the runs continue.\n"), (words, out)
        assert "Traceback" not in out and "error" not in out and set(lab.states().values()) == {"running"}
    (lab.root / "go").touch()
    refused = lab.launcher("status", "--watch", "--json")
    assert refused.returncode == 1 and "cannot be combined" in refused.stderr


def test_events_are_told_with_their_own_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announcer = tables.Announcer(tmp_path)
    announcer.event("001-x", Status("lost", time=time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))))
    earlier = time.time() - 60
    announcer.event("001-x", Status("running", time=earlier))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2026-01-02 03:04:05  001-x")
    assert time.strftime("%H:%M:%S", time.localtime(earlier)) in second


def test_a_remark_on_the_submission_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announcer = tables.Announcer(tmp_path)
    announcer.event(tmp_path.name, Status("queued", reason="continuing"))
    announcer.event("001-x", Status("queued", reason="waiting: GPU 0 is held by other/001-y"))
    note, waiting = (line.split() for line in capsys.readouterr().out.splitlines())
    assert note[1:] == [tmp_path.name, "note", "continuing"]
    assert waiting[1:4] == ["001-x", "queued", "waiting:"]


def test_a_speed_that_is_not_known_yet_is_left_open(tmp_path: Path) -> None:
    run_dir = tmp_path / "s" / "001-x"
    create_run(run_dir, RunRequest("001-x", 1, "train", []))
    for state in ("starting", "running"):
        append_event(run_dir, state, host="elsewhere")  # type: ignore[arg-type]
    beaten = {"epoch": 2, "epochs": 5, "images_per_second": None, "eta_seconds": None}
    (run_dir / "progress.json").write_text(json.dumps(beaten))
    text = printed(watch.status_table(watch.status_json(run_dir.parent)))
    assert "2/5" in text and "–" in text


def test_pages_that_a_runs_processes_share_count_once(tmp_path: Path) -> None:
    code = "import os, time; held = b'x' * (200 << 20); os.fork(); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and [process.stdout.readline() for _ in range(2)]
        figures = {"exec_pid": process.pid, "host": os.uname().nodename}
        run_dir = tmp_path / "s" / "001-x"
        create_state(run_dir)
        with run_locked(run_dir):
            size = HostMemory().peak(run_dir, Status("running", figures=figures))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    counted = 1 if sys.platform == "linux" else 2
    assert size is not None and counted * 200 * 2**20 < size < (counted + 0.5) * 200 * 2**20


def test_host_memory_of_a_run_that_is_over_is_the_journals(tmp_path: Path) -> None:
    seen = HostMemory()
    ended = Status("succeeded", figures={"peak_host_memory_bytes": 7})
    assert seen.peak(tmp_path, ended) == 7 and seen.peak(tmp_path, Status("queued")) is None
    # A process id without the run's lock may be anybody's.
    mine = {"exec_pid": os.getpid(), "host": os.uname().nodename}
    run_dir = tmp_path / "s" / "001-x"
    create_state(run_dir)
    assert seen.peak(run_dir, Status("running", figures=mine)) is None
    with run_locked(run_dir):
        size = seen.peak(run_dir, Status("running", figures=mine))
    assert size is not None and size >= psutil.Process().memory_info().rss / 2


def test_top_tells_cores_and_memory(lab: Lab) -> None:
    told = json.loads(lab.launcher("top", "--json").stdout)
    assert set(told) == {"machine", "cpu", "memory", "gpus"}
    assert 0 < told["memory"]["used_bytes"] < told["memory"]["total_bytes"] and told["cpu"]["cores"] > 0
    out = lab.launcher("top", "--once").stdout
    assert "cores" in out and "memory" in out and "GiB" in out


class Nvml:
    """Two GPUs, of which the second tells nothing but its name."""

    NVML_TEMPERATURE_GPU = 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: b"NVIDIA L4",
            "nvmlDeviceGetUUID": lambda handle: f"GPU-test-{handle}",
            "nvmlDeviceGetMemoryInfo": lambda handle: type("M", (), {"used": 5 * 2**30, "total": 24 * 2**30}),
            "nvmlDeviceGetUtilizationRates": lambda handle: type("U", (), {"gpu": 93}),
            "nvmlDeviceGetTemperature": lambda handle, kind: 61,
        }
        if name in ("nvmlInit", "nvmlShutdown"):
            return lambda: None

        def asked(*arguments: Any) -> Any:
            silent = name.startswith(("nvmlDeviceGetM", "nvmlDeviceGetUt", "nvmlDeviceGetT"))
            if silent and arguments[0] == 1:
                raise RuntimeError("Not Supported")
            return answers[name](*arguments)

        return asked


def test_top_shows_gpus_and_which_run_holds_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    held = gpu_locks.acquire("GPU-test-0", "benchmark-1/003-resnet34")
    assert held is not None
    monkeypatch.setattr(machine, "here", lambda: machine.Machine("server", 16, 2**36))
    try:
        told = top.look()
    finally:
        held.close()
    first, second = told["gpus"]
    assert (first["use_percent"], first["temperature_celsius"], first["run"]) == (93, 61, "benchmark-1/003-resnet34")
    assert (first["memory_used_bytes"], first["memory_total_bytes"]) == (5 * 2**30, 24 * 2**30)
    assert (
        second["name"] == "NVIDIA L4" and second["use_percent"] is second["memory_used_bytes"] is second["run"] is None
    )
    text = printed(top.render(told))
    assert "93 %" in text and "5 GiB of 24 GiB" in text and "benchmark-1/003-resnet34" in text and "free" in text


def test_top_on_a_mac_shows_one_memory_for_all(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "here", lambda: machine.Machine("mac", 12, 24 * 2**30, mps=True))
    told = top.look()
    assert told["memory"]["unified"] and [gpu["device"] for gpu in told["gpus"]] == ["mps"]
    assert "unified memory" in printed(top.render(told))


def printed(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(renderable)
    return console.export_text()


def test_replay_checks_journals(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(JOB), "--engine", "native").returncode == 0
    done = lab.launcher("replay")
    assert done.returncode == 0 and "✓ 001-seed1: queued → starting → running → succeeded" in done.stdout
    with (state_folder(lab.submission() / "001-seed1") / "events.jsonl").open("a") as journal:
        journal.write('{"time": 1, "state": "running", "attempt": 1, "reason": ""}\n')
    done = lab.launcher("replay", "1")
    assert done.returncode == 1 and "✗ 001-seed1: line 5: running cannot follow succeeded" in done.stdout


def completed(lab: Lab, *words: str, **environment: str) -> list[str]:
    """What bash would offer for the last word."""
    arguments = lab.arguments()
    line = " ".join(("launcher", *words))
    asked = {"_LAUNCHER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    arguments["env"] = {**arguments["env"], **asked, **environment}
    done = subprocess.run([sys.executable, "-m", "launcher"], capture_output=True, **arguments)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_the_shell_completes_what_there_is(lab: Lab) -> None:
    assert lab.launcher("submit", lab.job(JOB), "--engine", "native").returncode == 0
    name = lab.submission().name
    assert completed(lab, "status", "lo") == completed(lab, "attach", "") == [name]
    assert completed(lab, "logs", "00") == ["001-seed1", "002-seed2"]
    assert completed(lab, "logs", f"{name}/002") == [f"{name}/002-seed2"]
    assert name in completed(lab, "stop", "") and "001-seed1" in completed(lab, "stop", "")
    assert completed(lab, "submit", "jo") == ["job.yaml"]
    assert "training.lr=" in completed(lab, "submit", "job.yaml", "training.l")
    assert completed(lab, "submit", "model", "=", "res") == ["resnet34", "resnet50"]  # as bash splits it
    assert completed(lab, "submit", "model", "=") == completed(lab, "submit", "model", "=", "") != []
    assert completed(lab, "plan", "model=res") == ["model=resnet34", "model=resnet50"]  # as zsh and fish do
    assert completed(lab, "plan", "data=baseline_aug,tr") == ["data=baseline_aug,transformer_384"]
    assert completed(lab, "status", "x", LAUNCHER_RUNS="/nonexistent") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_printed(lab: Lab, shell: str) -> None:
    done = lab.launcher("completion", shell)
    assert done.returncode == 0 and "_LAUNCHER_COMPLETE" in done.stdout
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


cells = st.one_of(
    st.text("abc :.[]éß·…✓한글 ", max_size=9),
    st.sampled_from(["", " ", "a  b", ":smile:", "[bold]x[/bold]", "tab\there", "two\nlines", "e\u0301", "\x1b[1mx"]),
)


@given(
    st.integers(1, 4).flatmap(
        lambda columns: st.lists(st.lists(cells, min_size=columns, max_size=columns), min_size=1)
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.tuples(st.none() | cells, st.none() | cells),
    st.integers(1, 60),
)
def test_a_table_in_a_file_is_what_rich_prints(
    rows: list[list[str]], rights: list[bool], around: tuple[str | None, str | None], width: int
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=around[0], caption=around[1])
    table.title_justify = table.caption_justify = "left"
    for title, right in zip(rows[0], rights, strict=False):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    lines = options.plain_lines(table, width)
    if lines is not None:
        expected = io.StringIO()
        Console(file=expected, width=width, highlight=False, markup=False, emoji=False).print(table)
        assert "".join(f"{line}\n" for line in lines) == expected.getvalue()


def test_a_wide_table_and_control_characters_are_left_to_rich() -> None:
    table = Table("run", "state", box=None, pad_edge=False)
    table.add_row("a", "b")
    assert options.plain_lines(table, 10) == ["run  state", "a    b    "]
    assert options.plain_lines(table, 9) is None
    table.add_row("a\x1b", "b")
    assert options.plain_lines(table, 10) is None
    assert options.plain_lines("no table", 10) is None


SLOW = (
    "rich.console", "yaml", "omegaconf", "hydra", "pydantic", "numpy", "subprocess", "statistics", "logging",
    "importlib.metadata", "launcher.engines.base", "launcher.engines.native.engine", "launcher.host.machine", "hashlib",
    "secrets", "shutil", "tempfile", "ctypes", "difflib",
)  # fmt: skip
"""Modules that take longer than the rest of the command."""


@pytest.mark.parametrize("words", [["status"], ["status", "--json"]])
@pytest.mark.parametrize("state", ["queued", "running"])
def test_status_imports_little(tmp_path: Path, words: list[str], state: str) -> None:
    submission = tmp_path / "one-20261130-120000"
    create_run(submission / "001-x", RunRequest("001-x", 1, "train", []))
    if state == "running":
        append_event(submission / "001-x", "starting", devices=[])
        append_event(submission / "001-x", "running", devices=[])
    (submission / "submission.json").write_text('{"engine": "native", "runs": ["001-x"]}')
    code = (
        "import sys\nfrom launcher.__main__ import main\n"
        f"try:\n    main({[*words, '--runs', str(tmp_path)]})\nfinally:\n"
        f"    print(*sorted({{*{SLOW}}} & {{*sys.modules}}), file=sys.stderr)"
    )
    with lease.hold(submission):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "001-x" in done.stdout and state in done.stdout, done.stderr
    assert done.stderr.split() == []


def test_ctrl_c_within_an_import_ends_with_130_too(tmp_path: Path) -> None:
    """Python would end itself by the signal after a KeyboardInterrupt that left `exec`, although it was caught."""
    (tmp_path / "sitecustomize.py").write_text(
        "import click\ndef main(*words, **options):\n    exec('raise KeyboardInterrupt')\nclick.Group.main = main\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, "-m", "launcher", "status"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
