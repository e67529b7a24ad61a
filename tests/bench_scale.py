"""What the launcher's commands take for submissions of thousands of runs, with a trainer that only waits.

`python -m tests.bench_scale [--runs 1000 10000] [--old CHECKOUT] [--turns 2] [--json FILE]` prints a Markdown table. CPU
seconds, because other programs on the machine change the seconds of a clock. `--old` measures another version in turns
with this one. The table has the least of all turns, which other programs disturbed least; the file has each turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
MODELS = ["resnet34", "resnet50", "efficientnet_b4", "convnext_base", "swin_base_384"]
LIMITS: dict[str, tuple[float, float]] = {
    "plan": (4, 4),
    "submit --detach": (2, 10),
    "supervisor": (0.01, 0.03),
    "status": (0.3, 2),
    "status --json": (0.3, 2),
    "stop": (5, 5),
    "resume --detach": (3, 10),
    "collect": (1, 5),
}
"""Limits at 1,000 and at 10,000 runs: seconds of CPU; for the supervisor with two runs in progress, cores."""
MEMORY = 300 * 2**20
"""Bytes: limit of the memory of each process."""
WATCH = 20.0
"""Seconds for which the supervisor is observed."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Without bytecode, each command would compile the launcher first."""
MARK_SUCCEEDED = """\
import os, sys
from pathlib import Path
from launcher.record.find import list_runs
from launcher.record.journal import append_event
os.fsync = lambda descriptor: None
for number, run_dir in enumerate(list_runs(Path(sys.argv[1]))):
    append_event(run_dir, "queued", 9)
    append_event(run_dir, "starting", devices=[])
    append_event(run_dir, "running", devices=[])
    append_event(run_dir, "succeeded", exit_code=0, seconds=1.0)
    (run_dir / "metrics.json").write_text(
        '{"val_f1": %s, "val_accuracy": 0.5, "seconds": 1.0, "split_fingerprint": "s", "epochs": 1}'
        % (number % 9000 / 10000)
    )
    (run_dir / "best.ckpt").touch()
"""


@dataclass(frozen=True)
class Figure:
    """CPU and elapsed seconds of a command, and the largest memory of a process in bytes. Of the supervisor: its share
    of a core, without elapsed seconds."""

    cpu: float
    elapsed: float | None
    memory: int


class Bench:
    """A folder with data, a job, and a submission of `count` runs by the version in `checkout`."""

    def __init__(self, root: Path, checkout: Path, count: int, data: Path) -> None:
        self.root, self.checkout, self.data = root, checkout, data
        self.figures: dict[str, Figure] = {}
        (root / "machine.yaml").write_text("{gpus: 0, cpus: 2, memory: 64g}")
        (root / "job.yaml").write_text(
            f"name: bench\nmatrix:\n  model: {MODELS}\n  data: [baseline_aug, transformer_384]\n"
            f"  training.lr: [0.001, 0.0003]\n  seed: {list(range(count // 100))}\n  data.fold: all\n"
            "overrides: {data.folds: 5, model.pretrained: false}\nresources: {cpus: 1}\n"
        )

    def run(self, *words: str, name: str = "") -> str:
        """The output of a launcher's command. With a `name` its figure is kept."""
        command = [sys.executable, "-m", "launcher", *words, "--runs", str(self.root / "runs")]
        path = [str(self.checkout)]
        if words[0] in ("submit", "resume"):  # they start runs; the stand-in's imports would count for the others
            path.insert(0, str(self.checkout / "tests" / "launcher" / "fake"))
        environment = {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(path),
            "FAKE_PLAN": json.dumps({"*": {"until": str(self.root / "gate")}}),
            "FAKE_LOG": str(self.root / "journal"),
            "FAKE_LOCKS": str(self.root / "locks"),
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
        }
        (self.root / "locks").mkdir(exist_ok=True)
        with tempfile.TemporaryFile() as output:
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=output, stderr=output)
            _, code, usage = os.wait4(process.pid, 0)
            elapsed = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(code)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if code:
            raise RuntimeError(f"{self.checkout}: launcher {' '.join(words)}: {text[-2000:]}")
        if name:
            self.figures[name] = Figure(usage.ru_utime + usage.ru_stime, elapsed, usage.ru_maxrss * 1024)
        return text

    @property
    def submission(self) -> Path:
        """The latest submission."""
        return max((self.root / "runs").glob("bench-*"))

    def driver(self) -> int:
        """Process id of the supervisor."""
        return int(json.loads((self.submission / "supervisor.json").read_text())["pid"])

    def watch(self, name: str) -> None:
        """The supervisor's share of a core with two runs in progress, from its start to its end in between."""
        deadline = time.monotonic() + 120
        while (self.root / "journal").read_text().count('"begin"') < 2 if (self.root / "journal").exists() else True:
            if time.monotonic() > deadline:
                raise RuntimeError("no two runs begin")
            time.sleep(0.1)
        time.sleep(2)
        pid = self.driver()
        before, began = _cpu(pid), time.monotonic()
        time.sleep(WATCH)
        share = (_cpu(pid) - before) / (time.monotonic() - began)
        (peak,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
        self.figures[name] = Figure(share, None, int(peak.split()[1]) * 1024)

    def measure(self) -> dict[str, Figure]:
        """All figures."""
        machine = ("--machine", "machine.yaml")
        self.run("plan", "job.yaml", *machine, name="plan")
        submit = ("submit", "job.yaml", "--engine", "native", "--data", str(self.data), "--detach", *machine)
        self.run(*submit, name="submit --detach")
        self.watch("supervisor")
        self.run("status", name="status")
        self.run("status", "--json", name="status --json")
        self.run("stop", name="stop")
        self._await_end()
        self.run("resume", "--detach", *machine, name="resume --detach")
        self.run("stop")
        self._await_end()
        environment = {**ENVIRONMENT, "PYTHONPATH": str(self.checkout)}
        subprocess.run([sys.executable, "-c", MARK_SUCCEEDED, str(self.submission)], check=True, env=environment)
        self.run("collect", name="collect")
        return self.figures

    def _await_end(self) -> None:
        """The supervisor has seen that all runs have ended."""
        pid, deadline = self.driver(), time.monotonic() + 300
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        """End the supervisor and the runs."""
        (self.root / "gate").touch()
        if (self.root / "runs").is_dir() and list((self.root / "runs").glob("bench-*")) and _runs(self.driver()):
            os.kill(self.driver(), signal.SIGKILL)


def _cpu(pid: int) -> float:
    """CPU seconds of a process, without its children."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def data_folder(files: int) -> Iterator[Path]:
    """A data folder with this many small files."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as name:
        for number in range(files):
            if number % 500 == 0:
                folder = Path(name, "train", f"class{number // 500}")
                folder.mkdir(parents=True)
            (folder / f"{number}.png").write_bytes(b"%d" % number)
        yield Path(name)


def processor() -> str:
    """The name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def least(turns: list[dict[str, Figure]]) -> dict[str, Figure]:
    """Of each command the figure with the least CPU."""
    return {name: min((turn[name] for turn in turns), key=lambda figure: figure.cpu) for name in turns[0]}


def table(results: dict[int, list[list[dict[str, Figure]]]]) -> str:
    """The least of each figure as a Markdown table. `results`: runs → versions, the old one first → turns."""
    head = "| command |"
    for count, versions in results.items():
        old = " before |" if len(versions) > 1 else ""
        head += f" {count:,} runs: limit |{old} now | elapsed | memory |"
    lines = [head, "| --- |" + " --- |" * (head.count("|") - 2)]
    for name, limits in LIMITS.items():
        line = f"| `{name}` |" if name != "supervisor" else "| supervisor, two runs in progress |"
        for count, versions in results.items():
            figures = [least(turns)[name] for turns in versions]
            shown = (lambda value: f"{value:.1%}") if name == "supervisor" else (lambda value: f"{value:.2f} s")
            elapsed = f"{figures[-1].elapsed:.1f} s" if figures[-1].elapsed is not None else ""
            limit = limits[0] if count <= 1000 else limits[1]
            line += f" {limit:.0%} |" if name == "supervisor" else f" {limit:g} s |"
            line += "".join(f" {shown(figure.cpu)} |" for figure in figures)
            line += f" {elapsed} | {figures[-1].memory / 2**20:.0f} MiB |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table. Ends with 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--files", type=int, default=50_000, help="files of the data folder")
    parser.add_argument("--old", type=Path, help="a checkout of another version, measured in turns with this one")
    parser.add_argument("--turns", type=int, default=1, help="measurements of each version")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    given = parser.parse_args()
    checkouts = [*([given.old.resolve()] if given.old else []), REPOSITORY]
    for checkout in checkouts:
        compiled = [sys.executable, "-m", "compileall", "-q", "launcher", "trainer"]
        subprocess.run(compiled, cwd=checkout, check=True, env=ENVIRONMENT)
    results: dict[int, list[list[dict[str, Figure]]]] = {count: [[] for _ in checkouts] for count in given.runs}
    loads = [os.getloadavg()[0]]
    with data_folder(given.files) as data:
        for count in given.runs:
            for _ in range(given.turns):
                for turns, checkout in zip(results[count], checkouts, strict=True):
                    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
                        bench = Bench(Path(name), checkout, count, data)
                        try:
                            turns.append(bench.measure())
                        finally:
                            bench.close()
                    loads.append(os.getloadavg()[0])
    machine = f"{processor()}, {os.cpu_count()} cores, load {min(loads):.1f} to {max(loads):.1f}"
    print(f"{machine}, {given.files:,} data files, the least of {given.turns}\n")
    print(table(results))
    if given.json:
        names = [*(["before"] if given.old else []), "now"]
        figures = {
            str(count): {
                name: [{key: dataclasses.asdict(figure) for key, figure in turn.items()} for turn in turns]
                for name, turns in zip(names, versions, strict=True)
            }
            for count, versions in results.items()
        }
        content = {"machine": machine, "data_files": given.files, "runs": figures}
        given.json.write_text(json.dumps(content, indent=2) + "\n")
    over = [
        f"{name} at {count:,} runs"
        for count, versions in results.items()
        for name, figure in least(versions[-1]).items()
        if figure.cpu > LIMITS[name][0 if count <= 1000 else 1] or figure.memory > MEMORY
    ]
    print("\nover the limit: " + ", ".join(over) if over else "\nall within the limits")
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
