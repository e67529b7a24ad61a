"""How a command starts and ends: what it has imported, when it says what is wrong, what it leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import TINY
from trainer.augment import views
from trainer.base import names
from trainer.cli import imports
from trainer.cli.main import COMMANDS, main
from trainer.config import timm_models
from trainer.export import export
from trainer.models import build

HEAVY = {
    "albumentations", "cleanlab", "cv2", "lightning_fabric", "matplotlib", "numpy", "onnx", "onnxruntime", "pandas",
    "pydantic", "scipy", "scipy.signal", "scipy.stats", "sklearn", "timm", "torch", "torchmetrics", "torchvision", "wandb",
}  # fmt: skip
WRONG: dict[str, list[tuple[list[str], int, str]]] = {
    "train": [
        (["training.lr=0"], 64, "training.lr=0"),
        (["model=resnet43"], 64, "did you mean 'resnet34'?"),
        (["model.name=resnet43"], 64, "did you mean 'resnet34'?"),
        (["model.weights=nope.safetensors"], 64, "file not found"),
        (["training.teachers=[nope.ckpt]"], 64, "nope.ckpt: checkpoint not found"),
        (["resume=nope.ckpt"], 64, "file not found"),
        (["--data", "nope"], 65, "nope: the data folder (data.root) does not exist"),
        (["data.root=nope"], 65, "nope: the data folder (data.root) does not exist"),
        (["--data"], 64, "the folder is missing"),
    ],
    "config": [(["training.lrr=1"], 64, "did you mean 'training.lr'?")],
    "predict": [
        (["--checkpoint", "nope.ckpt"], 64, "nope.ckpt: checkpoint not found"),
        (["checkpoint=nope.json"], 64, "nope.json: file not found"),
        (["--checkpoint", "any.ckpt", "--data", "nope"], 65, "nope: the data folder"),
        (["--checkpoint", "any.ckpt", "--data.root", "nope"], 65, "nope: the data folder"),
        (["checkpoint=any.ckpt", "data=baseline_aug"], 64, "for the data folder use --data DIR"),
        (["--checkpoint", "any.ckpt", "--tta", "lihgt"], 64, "did you mean 'light'?"),
        (["--checkpoint", "any.ckpt", "--device", "gpu"], 64, "--device"),
        (["--checkpoint", "any.ckpt", "--output", "any.ckpt"], 64, "any.ckpt: is a file"),
        (["--checkpoint", "any.ckpt", "--output", "any.ckpt/out"], 64, "cannot create this folder (Not a directory)"),
    ],
    "ensemble": [
        (["--checkpoints", "any.ckpt", "nope.ckpt"], 64, "nope.ckpt: checkpoint not found"),
        (["--checkpoint", "nope.ckpt"], 64, "nope.ckpt: checkpoint not found"),
        (["--checkpoints", "any.ckpt", "--method", "soft_votin"], 64, "did you mean 'soft_voting'?"),
        (["--checkpoints", "any.ckpt", "--weights", "gredy"], 64, "did you mean 'greedy'?"),
        (["--checkpoints", "any.ckpt", "--data", "nope"], 65, "nope: the data folder"),
    ],
    "analyze": [
        (["--checkpoint", "nope.ckpt"], 64, "nope.ckpt: checkpoint not found"),
        (["--checkpoint", "any.ckpt", "data.root=nope"], 65, "nope: the data folder"),
    ],
    "check-data": [
        (["--data", "nope"], 65, "nope: the data folder"),
        (["data.format=cvs"], 64, "did you mean 'csv'?"),
        (["--output", "any.ckpt", "--data", "."], 64, "any.ckpt: is a file"),
    ],
    "label-errors": [
        (["--predictions", "nope.npz"], 64, "nope.npz: file not found"),
        (["--checkpoint", "nope.ckpt"], 64, "nope.ckpt: checkpoint not found"),
    ],
    "export": [
        (["--checkpoint", "any.ckpt", "--to", "onxx"], 64, "did you mean 'onnx'?"),
        (["--checkpoint", "any.json", "--to", "onnx"], 64, "an ensemble has several models"),
        (["--checkpoint", "nope.ckpt", "--to", "onnx"], 64, "nope.ckpt: checkpoint not found"),
    ],
    "estimate": [
        (["training.batch_size=0"], 64, "training.batch_size=0"),
        (["model.name=resnet43"], 64, "did you mean 'resnet34'?"),
        (["--table", "any.ckpt/table.csv"], 64, "any.ckpt is not a folder"),
        (["--table", "nope/table.csv"], 64, "--table nope/table.csv: the folder "),
        (["--table", "."], 64, "--table .: is a folder; give a file"),
    ],
    "bench": [
        (["--only", "nothing"], 64, "--only"),
        (["--json", "any.ckpt/x.json"], 64, "any.ckpt is not a folder"),
        (["--json", "nope/x.json"], 64, "--json nope/x.json: the folder "),
    ],
    "sample-data": [(["any.ckpt/drawn"], 64, "cannot create this folder"), (["--classes", "0", "x"], 64, "--classes")],
}
CASES = """
import contextlib, io, json, sys
from trainer.cli.main import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    print(json.dumps([code, said.getvalue(), sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""
LOADED = """
import json, sys
from trainer.cli.main import main
code = main(json.loads(sys.argv[1]))
print(json.dumps([code, sorted(set(json.loads(sys.argv[2])) & set(sys.modules))]))
"""


def python(code: str, *words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *(word if isinstance(word, str) else json.dumps(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})


def loaded(words: list[str], *heavy: str, **environment: str) -> set[str]:
    """Which of the modules `heavy` (default: HEAVY) a command has imported when it has done its work."""
    done = python(LOADED, words, list(heavy or sorted(HEAVY)), **environment)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


def test_what_is_wrong_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """For every command: values, names, files, folders."""
    (tmp_path / "any.ckpt").touch()
    (tmp_path / "data").mkdir()
    cases = [(command, *case) for command, cases in WRONG.items() for case in cases]
    done = python(CASES, [[command, *words] for command, words, _, _ in cases], sorted(HEAVY), cwd=tmp_path)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(cases), done.stderr
    for (command, words, code, text), (ended, said, modules) in zip(cases, outcomes, strict=True):
        assert (ended, modules) == (code, []), (command, words, said)
        assert text in said and said.startswith("error: "), (command, words, said)


def test_every_command_is_in_the_table() -> None:
    assert set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["config", "model=deit_base_384", "--data", "x"]]
)
def test_help_and_configuration_load_nothing_heavy(words: list[str]) -> None:
    assert loaded(words) == set()


def test_a_training_loads_what_it_needs(documents: Path, tmp_path: Path) -> None:
    words = ["train", *TINY, "training.max_steps=1", "--data", str(documents)]
    unused = HEAVY - {"albumentations", "cv2", "lightning_fabric", "numpy", "pydantic", "scipy", "sklearn", "timm",
                      "torch", "torchvision", "scipy.stats"}  # fmt: skip
    assert loaded(words, *sorted(unused), RUN_DIR=str(tmp_path / "run")) == set()


def test_a_prediction_loads_what_it_needs(trained: list[Path], documents: Path, tmp_path: Path) -> None:
    words = ["predict", "--checkpoint", str(trained[0] / "best.ckpt"), "--data", str(documents), "--num_workers", "0"]
    unused = ["matplotlib", "pandas", "scipy.signal", "scipy.stats", "sklearn", "torchmetrics", "wandb", "onnx"]
    assert loaded([*words, "--output", str(tmp_path)], *unused) == set()


def test_names_of_options_are_those_of_the_code() -> None:
    assert tuple(views.VIEWS) == names.VIEWS
    assert tuple(export.FORMATS) == names.FORMATS


@pytest.mark.parametrize(
    "words", [["--data", "a", "data.root=b"], ["data.root=a", "--data", "b"], ["--data=a", "--data=b"]]
)
def test_the_last_word_for_the_data_folder_counts(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *words]) == 0
    assert "  root: b\n" in capsys.readouterr().out


def test_a_name_of_timm_is_known_from_the_stored_list(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from tests.timm_models import text

    assert timm_models.FILE.read_text() == text(), "make it again: python -m tests.timm_models"
    for name in timm.list_models()[::40]:
        cfg = timm.get_pretrained_cfg(name)
        assert timm_models.has_weights(name) == bool(cfg and cfg.has_weights)
        if cfg.has_weights and cfg.hf_hub_id:
            assert timm_models.hub_repository(name) == cfg.hf_hub_id
    for name in [*timm.list_models()[::25], *timm.list_pretrained()[::50], "resnet50.a1_in1k", "hf-hub:somebody/model"]:
        timm_models.check(name)
    with pytest.raises(build.ConfigError) as cheap:
        timm_models.check("resnet43")
    for nameless in ("", ".a1_in1k"):
        with pytest.raises(build.ConfigError):
            timm_models.check(nameless)
    with pytest.raises(build.ConfigError) as sure:
        build.check_name("resnet43")
    assert str(cheap.value) == str(sure.value)
    with pytest.raises(build.ConfigError, match=r"has no weights of this name; did you mean 'resnet50\.a1_in1k'\?"):
        timm_models.check("resnet50.a1_in1")
    monkeypatch.setattr(timm_models, "_installed", lambda: "9.9")
    timm_models.check("a_model_of_tomorrow")


def test_packages_that_are_left_out_can_be_imported_afterwards() -> None:
    code = """
import sys
from trainer.cli.imports import without
try:
    with without("colorsys"):
        try:
            import colorsys
        except ImportError:
            print("hidden")
        raise KeyError
except KeyError:
    import colorsys
print("colorsys" in sys.modules)
"""
    assert python(code).stdout.split() == ["hidden", "True"]


def test_what_is_imported_already_stays() -> None:
    with imports.without("json"):
        assert sys.modules["json"] is json


END = """
import atexit, multiprocessing, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from trainer.cli.imports import end

def late():
    time.sleep(0.3)
    print("thread", flush=True)

def sleep():
    time.sleep(600)

if __name__ == "__main__":
    atexit.register(print, "registered")
    worker = multiprocessing.get_context("fork").Process(target=sleep, daemon=True)
    worker.start()
    print(worker.pid)
    threading.Thread(target=late).start()
    ThreadPoolExecutor(1).submit(late)
    sys.stdout.write("x" * 300_000)
    print("\\nlast", end="")
    end(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 75])
def test_the_end_leaves_nothing_behind(code: int) -> None:
    """Neither output, nor threads' work, nor what is registered for the end, nor processes; the exit code stays."""
    done = python(END, str(code))
    pid, rest = done.stdout.split("\n", 1)
    assert (done.returncode, done.stderr) == (code, "")
    assert rest.count("x") == 300_000 and rest.count("thread") == 2 and "registered" in rest and "last" in rest
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"


def test_output_that_cannot_be_written_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from trainer.cli.imports import end; print('x'); end(0)"], stdout=full
        )
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "code"), [("--version >&-", 0), ("trian 2>&-", 64), ("trian >&- 2>&-", 64), ("--help >&- 2>&-", 0)]
)
def test_closed_output_changes_no_exit_code(cold: None, words: str, code: int) -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m trainer {words}", shell=True, capture_output=True, text=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_a_training_leaves_no_process_behind(cold: None, documents: Path, tmp_path: Path) -> None:
    """Its loader processes are of its own session, which is empty when it has ended."""
    words = ["train", *TINY, "training.num_workers=2", "training.max_steps=1", "--data", str(documents)]
    training = subprocess.Popen(
        [sys.executable, "-m", "trainer", *words],
        env={**os.environ, "RUN_DIR": str(tmp_path / "run")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, _ = training.communicate()
    assert training.returncode == 0 and out.rstrip().endswith("best.ckpt")
    with pytest.raises(ProcessLookupError):
        os.killpg(training.pid, 0)
