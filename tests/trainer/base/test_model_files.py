"""The format of a model file is judged by a few bytes: right files pass, and each wrong one is told what it is."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.base import model_files
from trainer.cli.main import main

STATE = {"weight": torch.zeros(30, 40), "bias": torch.zeros(0)}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of right files by their names."""
    folder = tmp_path_factory.mktemp("good")
    torch.save(STATE, folder / "new.pth")
    torch.save({"format": 1, "state_dict": STATE}, folder / "best.ckpt")
    torch.save(STATE, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(STATE, folder / "x.safetensors", {"made": "here"})
    (folder / "ensemble.json").write_text(json.dumps({"format": 2, "members": [{"checkpoint": "../a/best.ckpt"}]}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def judged(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return model_files.fault(folder / name, ensembles=True) or ""


def test_right_files_pass(good: dict[str, bytes], tmp_path: Path) -> None:
    assert len(good) == 5
    assert {name: judged(tmp_path, name, content) for name, content in good.items()} == dict.fromkeys(good, "")


@pytest.mark.parametrize("name", ["new.pth", "best.ckpt", "x.safetensors"])
def test_a_copy_that_was_cut_short_is_told(good: dict[str, bytes], tmp_path: Path, name: str) -> None:
    whole = good[name]
    for tenth in range(1, 10):
        said = judged(tmp_path, name, whole[: len(whole) * tenth // 10])
        assert "is truncated" in said, (tenth, said)
    assert "zero bytes only" in judged(tmp_path, name, bytes(len(whole)))
    assert judged(tmp_path, name, b"") == "the file is empty"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Not found</html>", "an HTML or XML text"),
        (b"\n\n <html>", "an HTML or XML text"),
        (b'{"error": "no such model"}', "a JSON text"),
        (b"\x1f\x8b\x08...", "a gzip archive"),
        (b"garbage" * 50, "is neither a file of torch.save nor of safetensors|is not a safetensors file"),
        (b"x", "is neither a file of torch.save nor of safetensors|is not a safetensors file"),
        (struct.pack("<Q", 5) + b"{{{{{", "is neither|is not a safetensors file"),
        (b"PK\x03\x04" + b"PK\x05\x06" + b"\xff" * 18, "is not a file of torch.save|not of safetensors"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "best.ckpt"])
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    assert any(each in judged(tmp_path, name, content) for each in said.split("|")), judged(tmp_path, name, content)


def test_files_with_the_wrong_suffix_or_of_another_kind(good: dict[str, bytes], tmp_path: Path) -> None:
    assert "give it the suffix .safetensors" in judged(tmp_path, "a.pth", good["x.safetensors"])
    assert "give it the suffix .pt" in judged(tmp_path, "a.safetensors", good["new.pth"])
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("x/data.txt", "no weights")
    assert model_files.fault(tmp_path / "z.pt") == "is a zip archive, but not of torch.save"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "jit.pt")
    assert "TorchScript" in str(model_files.fault(tmp_path / "jit.pt"))
    assert (
        judged(tmp_path, "ensemble.json", b'{"members": [{"weight": 1}]}') == "is not an ensemble.json of this trainer"
    )
    assert model_files.fault(tmp_path / "ensemble.json") == "is a JSON text"


@pytest.mark.parametrize("key", ["model.weights={}", "training.teachers=[{}]", "resume={}"])
def test_training_ends_before_torch_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    (tmp_path / "bad.ckpt").write_text("<html>")
    assert main(["train", "model.name=test_resnet", key.format("bad.ckpt"), "--data", "."]) == 65
    assert f"error: {key.format('bad.ckpt').replace('[', '').replace(']', '')}: is an HTML" in capsys.readouterr().err
