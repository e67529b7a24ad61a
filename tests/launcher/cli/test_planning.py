"""A matrix of ten thousand runs: what planning it takes, in work and memory rather than in seconds of a busy machine.

`python -m tests.launcher.cli.test_planning` prints the seconds.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.host.machine import BUILT_IN
from launcher.job import expansion, remarks, spec
from launcher.memory import fitting
from launcher.supervise import together
from trainer.config import compose

REPOSITORY = Path(__file__).parents[3]
MODELS = ["resnet34", "resnet50", "efficientnet_b4", "convnext_base", "swin_base_384"]
LIMIT = 300 * 2**20
"""Bytes."""


def peak_memory() -> int:
    """Bytes that this process has held at most. Linux counts in ru_maxrss what the process was forked from, too."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def big_job(folder: Path) -> Path:
    """A job file of 5 models × 2 data × 2 learning rates × 100 seeds × 5 folds."""
    path = folder / "big.yaml"
    path.write_text(
        f"matrix:\n  model: {MODELS}\n  data: [baseline_aug, transformer_384]\n  training.lr: [0.001, 0.0003]\n"
        f"  seed: {list(range(100))}\n  data.fold: all\noverrides: {{data.folds: 5}}\n"
    )
    return path


def main() -> None:
    """Plan the big job in this process, and print what it took as JSON."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    calls = dict.fromkeys(("compose", "parse_override", "to_object", "update", "fit", "check", "collections"), 0)

    def counted(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def counting(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return function(*arguments, **named)

        setattr(owner, name, staticmethod(counting) if isinstance(owner, type) else counting)

    counted(hydra, "compose")
    counted(OverridesParser, "parse_override")
    counted(OmegaConf, "to_object")
    counted(OmegaConf, "update")
    counted(fitting, "fit")
    counted(compose, "check")

    def collecting(phase: str, about: dict[str, int]) -> None:
        calls["collections"] += phase == "start" and about["generation"] == 2

    machine = BUILT_IN["cuda-server"]
    gc.set_threshold(100_000)  # as the launcher does
    with tempfile.TemporaryDirectory() as folder:
        began, busy = time.monotonic(), time.process_time()
        job = spec.load(big_job(Path(folder)))
        gc.callbacks.append(collecting)
        planned = expansion.expand(job, machine)
        gc.callbacks.remove(collecting)
        text = json.dumps(
            remarks.plan_as_json(job, planned, machine, together.at_once(planned, machine, None)), indent=2
        )
        seconds, busy = time.monotonic() - began, time.process_time() - busy
    peak = peak_memory()
    names = {each.request.name for each in planned}
    identities = {each.request.identity for each in planned}
    configurations = {each.request.configuration for each in planned}
    result = {"runs": len(planned), "names": len(names), "identities": len(identities), "characters": len(text)}
    result |= {"configurations": len(configurations)}
    print(json.dumps({**result, **calls, "peak": peak, "seconds": round(seconds, 2), "cpu_seconds": round(busy, 2)}))


def test_ten_thousand_runs_are_composed_by_a_few_looks_at_omegaconf() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.launcher.cli.test_planning"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["runs"] == told["names"] == told["identities"] == 10_000
    assert told["configurations"] == 2_000  # of five folds each
    assert told["compose"] == told["parse_override"] == 0  # Hydra is for options and words that are not plain
    assert told["to_object"] <= 2 * 8  # twice for each option of a group
    assert told["update"] == 0  # numbers of the right type need no conversion
    assert told["fit"] == told["check"] == 100  # once for runs that differ only in the seed
    assert told["collections"] == 0
    assert told["peak"] < LIMIT


def test_a_long_plan_shows_its_first_rows_and_counts_the_rest(tmp_path: Path) -> None:
    path = big_job(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "plan", str(path), "seed=" + ",".join(map(str, range(6)))],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100-" in done.stdout and "101-" not in done.stdout
    assert "… and 500 more, all of them fit; --json lists all" in done.stdout


if __name__ == "__main__":
    main()
