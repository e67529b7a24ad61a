"""Commands that start nothing: plan, matrix, doctor, help; and what the command line loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.base import sizes
from launcher.base.errors import SizeError
from launcher.cli import watch
from launcher.host import gpu_locks, machine
from tests.launcher.conftest import Lab
from tests.warm.client import launch

REPOSITORY = Path(__file__).parents[3]
JOBS = sorted(path.name for path in (REPOSITORY / "jobs").glob("*.yaml"))


def launcher(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return launch(list(words), REPOSITORY, {**os.environ, **environment})


def sample_data(folder: Path) -> Path:
    """Two classes of two images, all different."""
    from PIL import Image

    (folder / "train").mkdir(parents=True)
    for shade, name in enumerate("abcd"):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / "train" / f"{name}.png")
    (folder / "train.csv").write_text("ID,target\na.png,0\nb.png,0\nc.png,1\nd.png,1\n")
    return folder


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_command_line_loads_lazily() -> None:
    assert not {"pydantic", "docker", "hydra", "pandas", "torch", "rich", "yaml"} & loaded("import launcher.cli.main")


def test_the_launcher_never_loads_torch() -> None:
    code = (
        "import pkgutil, importlib, launcher\n"
        "for m in pkgutil.walk_packages(launcher.__path__, 'launcher.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "from launcher.host import machine\nfrom launcher.job import expansion, spec\n"
        "expansion.expand(spec.from_overrides(['model=resnet34,resnet50']), machine.here())"
    )
    assert not {"torch", "pandas", "albumentations", "cv2"} & loaded(code)


def test_planning_loads_no_numpy() -> None:
    code = (
        "from launcher.cli import main\nfrom launcher.host import machine\nfrom launcher.job import expansion, spec\n"
    )
    code += "expansion.expand(spec.load(Path('jobs/folds.yaml')), machine.here())"
    assert "numpy" not in loaded("from pathlib import Path\n" + code)


def test_the_trainer_never_names_the_launcher() -> None:
    for path in (REPOSITORY / "trainer").rglob("*.py"):
        assert "import launcher" not in path.read_text() and "from launcher" not in path.read_text(), path


def test_plan_of_the_benchmark_lists_twelve_valid_runs() -> None:
    plan = json.loads(launcher("plan", "jobs/benchmark.yaml", "--json").stdout)
    assert len(plan["runs"]) == 12 and all(run["fits"] for run in plan["runs"])
    assert len({(run["config"]["model"], run["config"]["data"]) for run in plan["runs"]}) == 12
    assert [step["name"] for step in plan["steps"]] == ["013-vote", "014-submission"]
    assert set(plan["runs"][0]) >= {"name", "kind", "overrides", "command", "resources", "config", "fits", "why_not"}


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (name, where)
        for name in JOBS
        for where in ("", "cuda-server", "mac-m4-pro")
        if (name, where) != ("quickstart.yaml", "mac-m4-pro")  # the memory of its models is traced, for long
    ],
)
def test_every_job_of_the_project_plans_everywhere(name: str, where: str, tmp_path: Path) -> None:
    words = ["--machine", where] if where else []
    done = launcher("plan", f"jobs/{name}", *words, "--json", LAUNCHER_RUNS=str(tmp_path))
    if (name, where) == ("ensemble.yaml", ""):  # the submission that it takes runs of is looked for on this machine
        assert done.returncode == 64 and "jobs/ensemble.yaml:7: after.0.from: " in done.stderr
        return
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert all(run["fits"] for run in plan["runs"]) and (plan["runs"] or plan["steps"])
    assert {run["resources"]["gpus"] for run in plan["runs"]} <= ({1} if where else {0, 1})


def test_plan_shows_the_manuals_memory_beside_its_own_combinations() -> None:
    plan = json.loads(launcher("plan", "jobs/mac-safe.yaml", "--machine", "mac-m4-pro", "--json").stdout)
    assert [run["manual_memory_gb"] for run in plan["runs"]] == [8, 10, 12, 12] and plan["parallel"] == 1


def test_a_plan_for_a_cluster_that_is_described_needs_no_slurm_here() -> None:
    words = ("model=resnet34", "--engine", "slurm", "--machine", "cuda-server")
    done = launcher("plan", *words, PATH="/nonexistent")
    assert done.returncode == 0 and "as jobs of Slurm" in done.stdout, done.stderr


def test_plan_marks_what_does_not_fit_here() -> None:
    done = launcher("plan", "model=resnet34", "--set", "resources.gpus=8", "--machine", "cuda-server")
    assert done.returncode == 0 and "✗ cuda-server: 8 GPU requested, 1 available" in done.stdout


def test_plan_takes_the_words_of_submit_and_checks_them_as_it_does(tmp_path: Path) -> None:
    words = ("plan", "model=resnet34", "--cpu", "--engine", "native")
    done = launcher(*words, "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (65, "") and "(--data) has neither train.csv nor" in done.stderr
    (tmp_path / "train.csv").write_text("ID,target\n")
    done = launcher(*words, "--data", str(tmp_path))
    assert done.returncode == 65 and "train.csv:1: no rows below the header" in done.stderr
    few = ("data.val_fraction=0.5", "training.batch_size=2")
    done = launcher(*words, *few, "--data", str(sample_data(tmp_path / "sample")))
    assert done.returncode == 0 and "as native processes\n" in done.stdout and "001-resnet34" in done.stdout


@pytest.mark.parametrize(("environment", "rows"), [("cuda-server", 7), ("mac-m4-pro", 9), ("mps-20gb", 12)])
def test_matrix_shows_the_manuals_table(environment: str, rows: int) -> None:
    shown = json.loads(launcher("matrix", "--machine", environment, "--json").stdout)
    assert len(shown["rows"]) == rows and "they were not measured" in shown["note"]


def test_matrix_says_in_its_table_that_nothing_was_measured() -> None:
    assert "they were not measured" in launcher("matrix", "--machine", "mps-20gb").stdout


def test_doctor_says_what_is_missing_and_how_to_fix_it() -> None:
    done = launcher("doctor", "--data", "nowhere", "--json")
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0 and checks["trainer"]["level"] == "ok"
    assert checks["data"]["level"] == "note" and "sample-data nowhere" in checks["data"]["mend"]
    assert launcher("doctor", "--runs", "/proc/runs").returncode == 1


def test_a_word_longer_than_any_file_name_is_a_word() -> None:
    done = launcher("plan", "seed=" + ",".join(map(str, range(100))), "--json")
    assert len(json.loads(done.stdout)["runs"]) == 100


def test_a_wrong_folder_is_said_to_be_one(tmp_path: Path) -> None:
    code = "from launcher.__main__ import main; main()"

    def there(*words: str, folder: Path = tmp_path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LAUNCHER_RUNS": str(tmp_path / "runs")}
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stderr

    lost = there("status")
    assert "no submission yet; give the runs folder with --runs DIR" in lost and "quickstart" not in lost
    assert "launcher submit jobs/quickstart.yaml" in there("status", folder=REPOSITORY)
    assert "no folder jobs/ here: cd to the project's checkout" in there("submit", "jobs/x.yaml")
    assert "did you mean 'jobs/quickstart.yaml'?" in there("submit", "quickstart", folder=REPOSITORY)


def test_an_error_of_the_system_names_the_file_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/a/leaderboard.csv")

    monkeypatch.setattr("launcher.cli.main.cli.main", lambda *words, **more: refuse())
    with pytest.raises(SystemExit) as ended:
        main(["collect"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: /a/leaderboard.csv: Permission denied\n"


def test_the_table_of_a_submission_is_made_of_what_was_found_once() -> None:
    run = {"name": "001-a", "state": "queued", "attempt": 1, "reason": "", "val_f1": None, "progress": {}}
    table = watch.status_table({"submission": "one", "state": "running", "seconds_left": None, "runs": [run]})
    assert table.title == "one: running" and table.row_count == 1


def test_the_commands_are_listed_in_working_order_and_in_whole_lines() -> None:
    bare = launcher(COLUMNS="80")
    assert bare.returncode == 64 and not bare.stderr and bare.stdout == launcher("--help", COLUMNS="80").stdout
    lines = bare.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines][:6] == ["submit", "status", "logs", "stop", "resume", "collect"]
    assert all(len(line) <= 80 and not line.endswith(("...", "…")) and len(line.split()) > 1 for line in lines), lines
    group = launcher("cache")
    assert group.returncode == 64 and "ls" in group.stdout and "prune" in group.stdout


def test_help_and_version() -> None:
    assert launcher("--version").stdout.strip() == "0.1.0"
    out = launcher("-h").stdout
    assert all(
        word in out for word in ("plan", "submit", "status", "logs", "stop", "collect", "matrix", "doctor", "exec")
    )
    assert "--multirun" in launcher("submit", "--help").stdout


def test_a_reader_that_goes_away_shows_no_traceback() -> None:
    command = f"{sys.executable} -m launcher plan jobs/benchmark.yaml --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout) == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: 2", "did you mean 'gpus'?"),
        ("gpus: many", "gpus: must be a number"),
        ("cpus: -1", "cpus: must be a number above 0"),
        ("memory: lots", "is not a size"),
        ("[", "not YAML"),
        ("- a", "write cpus:"),
    ],
)
def test_a_wrong_machine_file_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    done = launcher("plan", "model=resnet34", "--machine", str(tmp_path / "m.yaml"))
    assert done.returncode == 64 and said in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_machine_names_the_nearest() -> None:
    assert "did you mean 'mac-m4-pro'?" in launcher("plan", "model=resnet34", "--machine", "mac-m4").stderr


def test_gpus_of_a_machine_can_be_restricted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("{gpus: 4, cpus: 8, memory: 64g}")
    assert machine.select(str(tmp_path / "m.yaml"), "1,3").devices == ("1", "3")
    found = machine.Machine("x", 8, 1, (machine.Gpu(0, uuid="GPU-aa"), machine.Gpu(1, uuid="GPU-bb")))
    monkeypatch.setattr(machine, "here", lambda: found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb")
    assert machine.select(None).devices == ("1",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.select(None).devices == ()
    assert machine.select(None, "0").devices == ("0",)


@pytest.mark.parametrize(
    ("text", "size"), [("24g", 24 * 2**30), ("1.5GiB", 3 * 2**29), ("512m", 2**29), (2**30, 2**30), ("1 kb", 1024)]
)
def test_sizes(text: object, size: int) -> None:
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (None, "–"),
        (300, "0.000286 MiB"),
        (5 * 2**20, "5 MiB"),
        (1000 * 2**20, "1000 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (1000 * 2**30, "1000 GiB"),
        (9 * 2**40, "9216 GiB"),
    ],
)
def test_sizes_are_shown_in_plain_numbers(size: int | None, shown: str) -> None:
    assert sizes.show_size(size) == shown


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("1h30m", 5400), ("90s", 90), (45, 45), ("0.5s", 0.5)])
def test_durations(text: object, seconds: float) -> None:
    assert sizes.parse_duration(text) == seconds


@pytest.mark.parametrize("wrong", ["", "g", "-1", "1x", "nan", True, None, "1e400", "99999999t"])
def test_what_is_neither_size_nor_duration(wrong: object) -> None:
    for parse in (sizes.parse_size, sizes.parse_duration):
        with pytest.raises(SizeError):
            parse(wrong)


def test_a_gpu_lock_ends_with_its_process_and_holds_across_users(lab: Lab) -> None:
    code = "import sys; from launcher.host import gpu_locks as gpus; h = gpus.acquire('test-gpu', 'a run'); print(h is not None, flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **lab.arguments()
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    assert gpu_locks.acquire("test-gpu", "me") is None and gpu_locks.holder("test-gpu") == "a run"
    assert gpu_locks.why_taken("test-gpu", None) == "held by a run"
    if os.geteuid() == 0:  # another user sees the lock, and may take it afterwards
        probe = "import os; os.setgid(65534); os.setuid(65534); from launcher.host import gpu_locks as gpus; print(gpus.acquire('test-gpu', 'other') is None)"
        assert _as_nobody(lab, probe) == "True"
    other.send_signal(signal.SIGKILL)
    other.wait()
    if os.geteuid() == 0:
        assert _as_nobody(lab, probe) == "False"
    held = gpu_locks.acquire("test-gpu", "me")
    assert held is not None
    held.close()


def test_a_shared_gpu_lock_has_one_group_at_a_time(lab: Lab) -> None:
    first, second = gpu_locks.acquire("test-gpu-2", "a", "group a"), gpu_locks.acquire("test-gpu-2", "a", "group a")
    assert first is not None and second is not None
    first.close()  # whoever goes first
    assert gpu_locks.acquire("test-gpu-2", "b", "group b") is None and gpu_locks.acquire("test-gpu-2", "alone") is None
    assert gpu_locks.holder("test-gpu-2") == "a"
    third = gpu_locks.acquire("test-gpu-2", "a", "group a")
    assert third is not None
    second.close()
    third.close()
    assert gpu_locks.holder("test-gpu-2") is None
    alone = gpu_locks.acquire("test-gpu-2", "alone")
    assert alone is not None and gpu_locks.acquire("test-gpu-2", "a", "group a") is None
    alone.close()
    other = gpu_locks.acquire("test-gpu-2", "b", "group b")
    assert other is not None and gpu_locks.acquire("test-gpu-2", "a", "group a") is None
    other.close()


def test_two_groups_never_hold_a_gpu_together(lab: Lab) -> None:
    """Processes of two groups take and leave the lock as fast as they can; each marks its group while it has it."""
    code = """
import sys, time, pathlib
from launcher.host import gpu_locks as gpus
group, folder = sys.argv[1], pathlib.Path(sys.argv[2])
mark, got, end = folder / f"{group}.{sys.argv[3]}", 0, time.monotonic() + 120
while got < 10 and time.monotonic() < end:
    held = gpus.acquire("test-gpu-3", group, "" if group == "alone" else group)
    if held is not None:
        mark.touch()
        others = [p.name for p in folder.iterdir() if p.name != mark.name and (group == "alone" or not p.name.startswith(group))]
        assert not others, others
        mark.unlink()
        got += 1
        held.close()
print(got)
"""
    command = [sys.executable, "-c", code]
    (lab.root / "marks").mkdir()
    processes = [
        subprocess.Popen([*command, group, str(lab.root / "marks"), number], stdout=subprocess.PIPE, **lab.arguments())
        for group, number in (("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("alone", "1"))
    ]
    assert [int(process.communicate()[0] or -1) for process in processes] == [10] * 5


def _as_nobody(lab: Lab, code: str) -> str:
    # Imported first: the checkout may lie where another user cannot read.
    command = [sys.executable, "-c", "from launcher.host import gpu_locks as gpus\n" + code]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, **lab.arguments())
    return done.stdout.strip()
