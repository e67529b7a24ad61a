"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.trainer.conftest import TINY
from trainer.base import errors, files
from trainer.cli.main import main
from trainer.images import examined


def trainer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_run_prints_no_warning(cold: None, documents: Path, tmp_path: Path) -> None:
    """Neither Hydra's `_self_`, nor albumentations' ignored arguments, nor a library's remark."""
    words = ["data.img_size=64", "training.max_steps=2", "training.num_workers=1", "training.warmup_epochs=0"]
    done = trainer("train", *TINY, *words, DATA_DIR=str(documents), RUN_DIR=str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("test_resnet on ") and lines[-1].startswith("best val_f1 ") and len(lines) == 4
    assert "\x1b" not in done.stdout, "a log is plain text"


def test_help_lists_commands_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("train", "predict", "ensemble", "analyze", "sample-data"))
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "swin_base_384" in out and "training.batch_size" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["model=resnet34"], "is `train` missing before it?"),
        (["train", "--multirun", "model=resnet34,resnet50"], "launcher submit model=resnet34,resnet50"),
        (["train", "model=resnet43", "trainin.lr=1"], "did you mean 'resnet34'?"),
        (["train", "--epochs", "3"], "error: --epochs 3: write training.epochs=3\n"),
        (
            ["train", "--batch-size", "4", "nosuch"],
            "error: --batch-size 4: write training.batch_size=4\nnosuch: the value",
        ),
        (["train", "--learning_rate", "4"], "error: --learning_rate 4: write training.lr=4\n"),
        (["train", "training.lr", "=", "0.01"], "error: training.lr = 0.01: write training.lr=0.01\n"),
        (["train", "training.lr=", "0.01", "seed=x"], "error: training.lr= 0.01: write training.lr=0.01\nseed=x: "),
        (["config", "training.lr", "=0.01"], "error: training.lr =0.01: write training.lr=0.01\n"),
        (["check-data", "/"], "error: /: is a folder; write --data /\n"),
        (["train", "data", "/"], "error: data /: write --data /\n"),
        (["train", "model", "resnet34"], "error: model resnet34: write model=resnet34\n"),
    ],
)
def test_a_wrong_word_is_an_error_with_the_right_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["data", "image", "weights", "files"])
def test_wrong_data_and_settings_leave_no_empty_folder(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN_DIR", raising=False)
    root = tmp_path / "data"
    shutil.copytree(documents, root)
    if wrong == "image":
        next((root / "train").iterdir()).write_bytes(b"no image")
    words = {"data": ["--data", "nowhere"], "weights": ["model.weights=nowhere.pt"], "files": ["--data", "data/train"]}
    said = {
        "data": "does not exist",
        "image": "not a readable image",
        "weights": "file not found",
        "files": "--data data\n",
    }
    assert main(["train", "--data", str(root), "model.name=test_resnet", "model.pretrained=false", "device=cpu",
                 *words.get(wrong, [])]) in (64, 65)  # fmt: skip
    assert said[wrong] in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_settings_come_from_dotenv_where_the_environment_is_silent(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "from_dotenv"
    (tmp_path / ".env").write_text(f"DATA_DIR={documents}\nRUN_DIR={run}\nWANDB_MODE=disabled\n")
    for name in ("RUN_DIR", "DATA_DIR", "WANDB_MODE"):  # so that they are taken back afterwards
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    assert main(["train", *TINY, "training.max_steps=1"]) == 0
    assert (run / "best.ckpt").exists()


def test_a_tilde_that_no_shell_has_replaced_is_the_home(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In .env and after `--output=` it is still there. A folder named ~ would be easy to delete with all others."""
    monkeypatch.setattr(examined, "_known", {})  # other tests have read these documents
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / ".env").write_text("RUN_DIR=~/run\nCACHE_DIR=~/cache\n")
    for name in ("RUN_DIR", "CACHE_DIR"):  # so that they are taken back afterwards
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATA_DIR", str(documents))
    assert main(["train", *TINY, "training.max_steps=1"]) == 0
    assert main(["predict", "--checkpoint=~/run/best.ckpt", "--output=~/out"]) == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run", "cache", "out"}
    assert {"decoded", "examined", "predictions"} <= {path.name for path in (tmp_path / "home" / "cache").iterdir()}
    assert not (tmp_path / "~").exists()


def no_space(*words: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_written_to_is_said_before_data_are_read(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unread(*words: object) -> None:
        raise AssertionError("data were read")

    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", no_space)
    monkeypatch.setattr("trainer.data.table.read_training", unread)
    monkeypatch.setenv("DATA_DIR", str(documents))
    monkeypatch.setenv("RUN_DIR", str(run))
    assert main(["train", *TINY, "training.max_steps=1"]) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run}: uid {os.getuid()} cannot write results to this folder (No space")
    assert main(["predict", "checkpoint=any.ckpt"]) == 64
    assert f"error: {run}: uid " in capsys.readouterr().err


def test_a_folder_that_was_used_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    code = (
        "import sys; from trainer.cli.main import main; print(main(['train', *sys.argv[1:]]), 'torch' in sys.modules)"
    )
    for words, said in (([], "this folder has a run already"), (["resume=none.ckpt"], "file not found")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={**os.environ, "RUN_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "64 False\n" and said in done.stderr


def test_a_folder_of_another_user_names_the_uid(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o555)
    become = "os.setgid(65534); os.setuid(65534)" if os.getuid() == 0 else "None"
    code = f"""
import os
import tempfile  # later, that user may not read Python's library
from pathlib import Path
from trainer.base import files
{become}
try:
    files.check_folder(Path("run"))
except files.ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    uid = 65534 if os.getuid() == 0 else os.getuid()
    assert f"run: uid {uid} cannot write results to this folder (Permission denied)" in done.stdout


def test_an_error_of_the_system_names_the_file_and_never_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError) as raised, files.replacing(tmp_path / "metrics.json") as temporary:
        raise PermissionError(13, "Permission denied", str(temporary))
    assert errors.os_error(raised.value) == f"{tmp_path / 'metrics.json'}: Permission denied"
    with pytest.raises(OSError) as raised, files.replacing(tmp_path / "metrics.json"):
        raise FileNotFoundError(2, "No such file or directory", "other.txt")
    assert errors.os_error(raised.value) == "other.txt: No such file or directory"
    assert errors.os_error(OSError("a library's own words")) == "a library's own words"

    def refuse(*words: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/train.csv")

    monkeypatch.setattr("trainer.data.drawn.write_sample_data", refuse)
    assert main(["sample-data", str(tmp_path / "drawn")]) == 1
    assert capsys.readouterr().err == "error: /data/train.csv: Permission denied\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["export", "--to", "torch_export", "--output", "out"], "out"),
        (["export", "--to", "safetensors", "--output", "out"], "out"),
        (["export", "--to", "onnx", "--output", "out"], "out"),
        (["analyze", "--output", "out"], "out/analysis_results/confusion_matrix.png"),
        (["label-errors", "--output", "out"], "out/label_errors.png"),
        (["predict", "--num_workers", "0", "--output", "out"], "out/predictions.npz"),
        (["sample-data", "out"], "out"),
    ],
)
def test_a_full_disk_is_said_with_the_place(
    words: list[str], named: str, trained: list[Path], documents: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A limit for the size of files stands for the disk: libraries meet it as they meet a full disk, in a write. Some
    lose the name of the file, and one of them would end the process."""
    if words[0] != "sample-data":
        option = "--predictions" if words[0] == "label-errors" else "--checkpoint"
        words = [*words, option, str(trained[0] / "best.ckpt"), "--data", str(documents)]
    for module in ("trainer.export.export", "trainer.report.analyze", "trainer.scores.label_errors", "onnxruntime"):
        importlib.import_module(module)  # caches that are written on import must not be cut
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert f"error: {named}: {os.strerror(errno.EFBIG)}\n" == capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_run_folder_whose_name_is_not_utf8_serves(trained: list[Path], documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xb0\xe1\xb0\xfa")  # in CP949 a word
    shutil.copytree(trained[0], folder)
    words = ["--checkpoint", str(folder / "best.ckpt"), "--data", str(documents)]
    assert main(["predict", *words, "--output", str(folder / "predicted")]) == 0
    assert (folder / "predicted" / "submission.csv").exists()
    assert main(["export", *words, "--to", "torch_export", "--output", str(folder / "made")]) == 0
    assert (folder / "made" / "model.pt2").exists()
    both = ["--checkpoints", str(folder / "best.ckpt"), str(trained[1] / "best.ckpt"), "--data", str(documents)]
    assert main(["ensemble", *both, "--output", str(folder / "vote")]) == 0
    assert main(["analyze", "--checkpoint", str(folder / "vote" / "ensemble.json"), "--output", str(folder)]) == 0
