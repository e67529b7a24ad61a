"""Images: what makes one stale, what its labels say, and what `doctor` says of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.base.errors import EngineError
from launcher.engines.docker import checks, images
from launcher.engines.docker import client as docker_client


def test_the_hash_follows_what_is_baked_in_and_nothing_else(tree: Path) -> None:
    before = images.content_hash(tree, "cpu")
    (tree / "README.md").write_text("words")
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "x.pyc").write_bytes(b"1")
    text = (tree / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(text.replace("line-length = 120", "line-length = 100"))
    assert images.content_hash(tree, "cpu") == before != images.content_hash(tree, "cuda")
    for name in (
        "trainer/__main__.py",
        "images/constraints.txt",
        "Dockerfile.cpu",
        "trainer/config/conf/model/resnet34.yaml",
    ):
        (tree / name).write_text((tree / name).read_text() + "\n")
        after = images.content_hash(tree, "cpu")
        assert after != before, name
        before = after
    (tree / "pyproject.toml").write_text(text.replace('"timm>=', '"timm!=1.0.0,>='))
    assert images.content_hash(tree, "cpu") != before


def attributes(root: Path, **labels: str) -> dict[str, Any]:
    known = {"document-classifier.variant": "cpu", "document-classifier.content": images.content_hash(root, "cpu")}
    config = {"Labels": known | labels, "Entrypoint": ["python"]}
    return {"Id": "sha256:1", "RepoTags": ["mine:1"], "Config": config, "Size": 5, "Created": "2026-11-24T00:00:00.1Z"}


def test_an_image_is_stale_when_the_checkout_has_moved_on(tree: Path) -> None:
    described = attributes(tree)
    assert images.describe(described, tree).stale is False
    assert images.stale_warning(images.describe(described, tree)) is None
    (tree / "trainer" / "__main__.py").write_text("# changed\n")
    warning = images.stale_warning(images.describe(described, tree))
    assert warning and warning.endswith("rebuild it: launcher build cpu --tag mine:1")
    elsewhere = images.describe(described, tree / "nowhere")
    assert elsewhere.stale is None and images.stale_warning(elsewhere) is None, "no checkout, nothing to compare with"


def test_an_image_that_was_built_by_hand_is_told(tree: Path) -> None:
    by_hand = images.describe(attributes(tree, **{"document-classifier.content": "unknown"}), tree)
    warning = images.stale_warning(by_hand)
    assert by_hand.stale is None and warning and "has no label for its content" in warning
    assert warning.endswith("rebuild it: launcher build cpu --tag mine:1")
    somebodys = attributes(tree, **{"document-classifier.content": "", "document-classifier.variant": ""})
    assert images.stale_warning(images.describe(somebodys, tree)) is None, "not of this project"


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        ({}, "ok", "only to its directory"),
        ({"written": False, "arrived": False}, "missing", "cannot write to"),
        ({"arrived": False}, "missing", "the engine has another disk"),
        ({"outside": ["/tmp/written"]}, "missing", "outside its directory: /tmp/written"),
    ],
)
def test_doctor_believes_what_arrived_and_not_what_a_container_says(
    tmp_path: Path, seen: dict[str, Any], level: str, words: str
) -> None:
    check = checks.mounts_check({"written": True, "arrived": True, "outside": [], **seen}, tmp_path)
    assert check.level == level and words in check.said


def test_doctor_outlives_an_engine_that_is_half_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(reference: str) -> Any:
        raise ValueError("disk I/O error")

    broken = SimpleNamespace(info=lambda: {"ServerVersion": "1"}, images=SimpleNamespace(get=fails))
    monkeypatch.setattr(checks.docker_client, "connect", lambda timeout: broken)
    *_, last = checks.examine(tmp_path)
    assert last.level == "note" and "reports an error" in last.said and "disk I/O error" in last.said


def test_doctor_says_nothing_of_a_cuda_image_that_nothing_here_would_use(tree: Path) -> None:
    image = images.describe(attributes(tree), tree)
    old = images.describe(attributes(tree, **{"document-classifier.content": "0"}), tree)
    for cuda in (None, old):
        named = [check.what for check in checks._images({"cpu": image, "cuda": cuda}, gpus=False)]
        assert named == ["image cpu"]
    assert [check.level for check in checks._images({"cpu": image, "cuda": old}, gpus=True)] == ["ok", "note"]
    assert [check.what for check in checks._images({"cpu": None, "cuda": old}, gpus=False)][-1] == "image cuda"


@pytest.mark.parametrize("text", ["[]", '{"auths": 5}', "5"])
def test_broken_settings_of_the_docker_client_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    with pytest.raises(EngineError, match=f"{tmp_path}/config.json: no settings of a docker client; repair or remove"):
        docker_client.connect()
