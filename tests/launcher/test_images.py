"""Images: what makes one stale, how one is built by either builder, which one a job gets; and what a container is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher import engine_checks, images
from launcher.containers import EngineError
from launcher.engines import container
from launcher.runs import Resources, RunRequest
from tests.docker_engine import BASE, REPOSITORY, Dockerd


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout whose packages take no time to install: the Dockerfiles are the real ones."""
    root = tmp_path / "tree"
    for folder in ("trainer", "images"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Dockerfile.cpu", "Dockerfile.cuda"):
        shutil.copy(REPOSITORY / name, root)
    # The path makes it one that no earlier build has cached.
    (root / "images" / "install.sh").write_text(f"echo installed $1 with $TORCH_INDEX # {root}\n")
    return root


def test_the_hash_follows_what_is_baked_in_and_nothing_else(tree: Path) -> None:
    before = images.content_hash(tree, "cpu")
    (tree / "README.md").write_text("words")
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "x.pyc").write_bytes(b"1")
    text = (tree / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(text.replace("line-length = 120", "line-length = 100"))
    assert images.content_hash(tree, "cpu") == before != images.content_hash(tree, "cuda")
    for name in ("trainer/metrics.py", "images/constraints.txt", "Dockerfile.cpu", "trainer/conf/model/resnet34.yaml"):
        (tree / name).write_text((tree / name).read_text() + "\n")
        after = images.content_hash(tree, "cpu")
        assert after != before, name
        before = after
    (tree / "pyproject.toml").write_text(text.replace('"timm>=1.0.15,<1.1"', '"timm>=1.0.16,<1.1"'))
    assert images.content_hash(tree, "cpu") != before


def attributes(root: Path, **labels: str) -> dict[str, Any]:
    known = {"document-classifier.variant": "cpu", "document-classifier.content": images.content_hash(root, "cpu")}
    config = {"Labels": known | labels, "Entrypoint": ["python"]}
    return {"Id": "sha256:1", "RepoTags": ["mine:1"], "Config": config, "Size": 5, "Created": "2026-11-24T00:00:00.1Z"}


def test_an_image_is_stale_when_the_checkout_has_moved_on(tree: Path) -> None:
    described = attributes(tree)
    assert images.describe(described, tree).stale is False
    assert images.stale_warning(images.describe(described, tree)) is None
    (tree / "trainer" / "metrics.py").write_text("# changed\n")
    warning = images.stale_warning(images.describe(described, tree))
    assert warning and warning.endswith("renew it: launcher build cpu --tag mine:1")
    by_hand = {"document-classifier.content": "unknown"}
    assert images.describe(attributes(tree, **by_hand), tree).stale is None
    assert images.describe(described, tree / "nowhere").stale is None


@pytest.mark.parametrize("builder", ["BuildKit", "the engine's own"])
def test_either_builder_builds_the_real_dockerfiles(
    dockerd: Dockerd, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str
) -> None:
    dockerd.base()
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", dockerd.environment["PATH"] if builder == "BuildKit" else str(tmp_path))
    said: list[str] = []
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "resnet34.safetensors").write_bytes(b"weights")
    client = dockerd.client()
    for variant in ("cpu", "cuda"):
        tags = [f"built:{variant}", f"built:{variant}-too"]
        values = {"WEIGHTS": str(tmp_path / "w"), "TORCH_INDEX": "http://elsewhere"}
        image = images.build(client, variant, BASE, values, tags, said.append, tree)  # type: ignore[arg-type]
        try:
            assert set(tags) <= set(image.tags) and image.variant == variant and image.weights == "resnet34"
            assert image.entrypoint == ("python", "-m", "trainer")
            with_what = f"--base {BASE} --build-arg WEIGHTS={tmp_path}/w --build-arg TORCH_INDEX=http://elsewhere"
            assert image.build_command == f"launcher build {variant} {with_what} --tag {image.tags[0]}"
            assert images.describe(client.images.get(image.id).attrs, tree).stale is False
            command = "cat /opt/weights/resnet34.safetensors; echo; ls /opt/app/trainer/cli.py; id -u"
            out = client.containers.run(image.id, ["-c", command], entrypoint=["sh"], user="4321", remove=True)
            assert out.decode().split() == ["weights", "/opt/app/trainer/cli.py", "4321"]
        finally:
            for tag in tags:
                client.images.remove(tag, force=True)
    assert any("installed packages with http://elsewhere" in line for line in said)
    assert ("no docker client with BuildKit" in said[0]) == (builder != "BuildKit")


def test_the_password_of_an_index_is_in_no_label(dockerd: Dockerd, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dockerd.base()
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", dockerd.environment["PATH"])
    client = dockerd.client()
    values = {"TORCH_INDEX": "http://me:hunter2@elsewhere"}
    image = images.build(client, "cpu", BASE, values, ["built:secret"], lambda line: None, tree)
    try:
        assert "hunter2" not in str(client.images.get("built:secret").labels)
        assert image.build_command == f"launcher build cpu --base {BASE} --tag built:secret"
    finally:
        client.images.remove("built:secret", force=True)


def test_a_build_that_fails_says_why_and_how_on(
    dockerd: Dockerd, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerd.base()
    client = dockerd.client()
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", dockerd.environment["PATH"])
    (tree / "images" / "install.sh").write_text("echo no such package; exit 3\n")
    with pytest.raises(EngineError, match=r"(?s)Dockerfile\.cpu could not be built: .*no such package"):
        images.build(client, "cpu", BASE, {}, ["built:broken"], lambda line: None, tree)
    with pytest.raises(EngineError, match=r"images/make-base\.sh"):
        images.build(client, "cpu", "no-such-base:1", {}, ["built:broken"], lambda line: None, tree)
    with pytest.raises(EngineError, match="holds no <timm name>"):
        images.build(client, "cpu", BASE, {"WEIGHTS": str(tree)}, ["built:broken"], lambda line: None, tree)
    with pytest.raises(EngineError, match=r"no Dockerfile\.cuda"):
        images.build(client, "cuda", BASE, {}, ["built:broken"], lambda line: None, tmp_path)
    assert images.find(client, "built:broken") is None


def request(**more: Any) -> RunRequest:
    return RunRequest("001-x", 1, "train", **{"command": ["train", "model=resnet34"], **more})


@pytest.mark.parametrize(
    ("asked", "environment", "why"),
    [
        ({}, {}, None),
        ({"network": True}, {}, "network: true"),
        ({"network": False, "fetches": "resnet50"}, {}, None),
        ({"secrets": ["WANDB_API_KEY"]}, {"WANDB_API_KEY": "k"}, "W&B is online"),
        ({"secrets": ["WANDB_API_KEY"], "env": ["WANDB_MODE"]}, {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None),
        ({"secrets": ["WANDB_API_KEY"]}, {}, None),
        ({"env": ["WANDB_MODE"]}, {"WANDB_MODE": "online"}, "W&B is online"),
        ({}, {"WANDB_MODE": "online"}, None),
        ({"fetches": "resnet50"}, {}, "weights of resnet50"),
        ({"fetches": "resnet34"}, {}, None),
        ({"fetches": "resnet18"}, {}, None),
        ({"fetches": "resnet10t"}, {}, None),
    ],
)
def test_a_container_has_a_network_for_a_reason(
    tmp_path: Path, asked: dict[str, Any], environment: dict[str, str], why: str | None
) -> None:
    (tmp_path / "weights" / "models--timm--resnet18.a1_in1k").mkdir(parents=True)
    (tmp_path / "weights" / "resnet10t.safetensors").touch()
    reason = container.network_reason(request(**asked), environment, tmp_path, "resnet34,deit_base_384")
    assert (reason is None) == (why is None) and (why or "") in (reason or "")


def test_paths_of_the_host_are_mounted_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    (tmp_path / "d").mkdir()
    command = ["train", "model.weights=w.pth", f"data.root='{tmp_path}/d'", "resume=@runs/a/001-b/last.ckpt", "seed=1"]
    told, files = container.words(request(command=command, cwd=str(tmp_path)), tmp_path)
    assert told == [
        "train",
        f"model.weights={tmp_path}/w.pth",
        f"data.root={tmp_path}/d",
        "resume=/runs/a/001-b/last.ckpt",
        "seed=1",
    ]
    assert files == [tmp_path / "w.pth", tmp_path / "d"]
    (tmp_path / "last.ckpt").touch()
    assert container.words(request(command=command, cwd=str(tmp_path)), tmp_path)[0][-1] == "resume=auto"
    with pytest.raises(FileNotFoundError, match=r"model\.weights=gone\.pth: there is no such file"):
        container.words(request(command=["train", "model.weights=gone.pth"], cwd=str(tmp_path)), tmp_path)


def test_a_message_of_a_container_speaks_of_the_hosts_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIR", raising=False)
    asked = request(data_dir="/srv/data/docs", command=["train", "model.weights='/data/w.pth'"])
    run_dir = Path("/home/me/runs/job-1/001-x")

    def told(text: str) -> str:
        return container.on_host(text, asked, run_dir)

    assert told("/data: the data folder (DATA_DIR) is empty") == "/srv/data/docs: the data folder (DATA_DIR) is empty"
    assert told("2 faults in /data: mend") == "2 faults in /srv/data/docs: mend"
    assert told("see /runs/job-1/001-x/data_faults.txt") == "see /home/me/runs/job-1/001-x/data_faults.txt"
    assert told("DATA_DIR=/data, '/cache/weights'.") == "DATA_DIR=/srv/data/docs, '/home/me/runs/.cache/weights'."
    for kept in ("/database", "/mnt/data/x", "/data-2/x", "/data.old", "https://host/data", "file:///data", "a/runs/b"):
        assert told(kept) == kept
    assert told("/data/w.pth: no weights; /data/a.jpg") == "/data/w.pth: no weights; /srv/data/docs/a.jpg"
    assert container.on_host("/runs/a, /data/b", asked) == "/runs/a, /srv/data/docs/b"
    assert container.on_host("/data/b", request(data_dir=None)) == "/data/b", "nothing is mounted there"


def test_memory_limits_leave_no_swap_and_shm_has_a_sane_size(tmp_path: Path) -> None:
    place = container.Place("sha256:1", ("python",), (1000, 1000), cache=tmp_path)

    def host(**resources: Any) -> dict[str, Any]:
        asked = request(resources=Resources(**resources))
        options: dict[str, Any] = container.options(asked, place, tmp_path / "s" / "001-x", 1, [], [])["host_config"]
        return options

    assert host(memory=4 * 2**30)["memswap_limit"] == 4 * 2**30 and host(memory=4 * 2**30)["shm_size"] == 2 * 2**30
    assert host(memory=4 * 2**30, shm=2**20)["shm_size"] == 2**20
    assert "mem_limit" not in host() and host()["shm_size"] == 2**30


def test_the_runs_user_is_never_root(tmp_path: Path) -> None:
    assert container.run_user(tmp_path) == ((1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid()))
    assert container.run_user(tmp_path, rootless=True) == (0, 0), "which is the caller, outside"
    if os.getuid() == 0:
        os.chown(tmp_path, 4321, 1234)
        assert container.run_user(tmp_path) == (4321, 1234)


@pytest.mark.parametrize(
    ("driver", "built", "level", "words"),
    [
        ((13, 0), "13.0", "ok", ""),
        ((12, 4), "12.8", "ok", "serves CUDA 12.4"),
        ((12, 4), "13.0", "missing", "TORCH_INDEX=<PyTorch's wheel index>/cu126"),
        ((12, 8), "13.0", "missing", "/cu128"),
        ((11, 8), "13.0", "missing", "a newer driver: no wheel"),
        ((13, 0), None, "missing", "launcher build cuda"),
        (None, "13.0", "note", ""),
    ],
)
def test_a_driver_that_is_too_old_for_the_image_is_told_with_the_index_that_fits(
    driver: tuple[int, int] | None, built: str | None, level: str, words: str
) -> None:
    check = engine_checks.cuda_check(driver, built, "2.14.1")
    assert check.level == level and words in check.said + check.mend
