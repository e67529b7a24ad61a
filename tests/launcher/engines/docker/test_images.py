"""Images: what makes one stale, how one is built by either builder, which one a job gets; and what a container is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from launcher.base.errors import ArgumentError, EngineError
from launcher.cli import images as commands
from launcher.engines.docker import checks, images, recipe
from launcher.engines.docker import client as docker_client
from launcher.engines.docker.watched import ContainerAttempt, ending
from launcher.host.machine import Gpu, Machine
from launcher.job import expansion, remarks, spec
from launcher.record.request import Resources, RunRequest
from tests.docker_engine import BASE, REPOSITORY, Dockerd


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


def test_the_dockerfiles_differ_in_what_they_must_and_are_plain() -> None:
    cpu, cuda = ((REPOSITORY / f"Dockerfile.{variant}").read_text() for variant in ("cpu", "cuda"))
    assert "--mount" not in cpu + cuda, "a builder that is not BuildKit knows none"
    for text in (cpu, cuda):
        assert images.with_cache(text).count("RUN --mount=type=cache,target=/root/.cache/pip sh ") == 1
    known = (" \\\n    NVIDIA_DRIVER_CAPABILITIES=compute,utility", "")
    body = cuda.split("\n", 2)[2].replace(*known).replace('.variant="cuda"', '.variant="cpu"')
    assert body == cpu.split("\n", 2)[2]


def test_buildx_is_asked_to_hand_over_what_it_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version, buildx in (("bare", 28, 1), ("old", 20, 1), ("plugin", 20, 0)):
        tool = tmp_path / name / "docker"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\necho "Docker version {version}.0.1"\n[ "$1" != buildx ] || exit {buildx}\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bare")
    assert images.buildkit_command() is None
    monkeypatch.setenv("PATH", f"{tmp_path}/bare{os.pathsep}{tmp_path}/old")
    assert images.buildkit_command() == [f"{tmp_path}/old/docker", "build"]
    monkeypatch.setenv("PATH", f"{tmp_path}/bare{os.pathsep}{tmp_path}/plugin")
    assert images.buildkit_command() == [f"{tmp_path}/plugin/docker", "buildx", "build", "--load"]


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
            command = "cat /opt/weights/resnet34.safetensors; echo; ls /opt/app/trainer/cli/main.py; id -u"
            out = client.containers.run(image.id, ["-c", command], entrypoint=["sh"], user="4321", remove=True)
            assert out.decode().split() == ["weights", "/opt/app/trainer/cli/main.py", "4321"]
        finally:
            for tag in tags:
                client.images.remove(tag, force=True)
    assert any("installed packages with http://elsewhere" in line for line in said)
    assert ("no docker client with BuildKit" in said[0]) == (builder != "BuildKit")


class NoEngine:
    """A client that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the engine was asked for {name}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"TORCH_INDEX": "https://me:hunter2@elsewhere/simple"}, "TORCH_INDEX: contains a user or password"),
        ({"TORCH_IDNEX": "x"}, "did you mean 'TORCH_INDEX'? (valid: BASE_IMAGE, TORCH_INDEX, WEIGHTS)"),
        ({"FOO": "1"}, "unknown argument of Dockerfile.cpu; valid: BASE_IMAGE, TORCH_INDEX, WEIGHTS"),
        ({"CONTENT_HASH": "1"}, "unknown argument"),
        ({"WEIGHTS": "/nowhere/at/all"}, "no folder /nowhere/at/all"),
        ({"WEIGHTS": "resnet34,./w"}, "no folder ./w"),
        ({"WEIGHTS": "images"}, "has no <timm name>"),
    ],
)
def test_build_arguments_are_checked_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str], words: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(images, "_by_buildkit", NoEngine().__getattr__)
    said: list[str] = []
    with pytest.raises(ArgumentError) as refused:
        images.build(NoEngine(), "cpu", None, arguments, ["built:secret"], said.append)  # type: ignore[arg-type]
    assert words in str(refused.value) and "hunter2" not in str(refused.value) and not said


def test_a_bad_build_argument_ends_with_the_code_of_bad_input(dockerd: Dockerd) -> None:
    command = [sys.executable, "-m", "launcher", "build", "cpu", "--build-arg", "FOO=1"]
    done = subprocess.run(command, env=dockerd.environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 64 and "--build-arg FOO" in done.stderr, done.stderr


PULL = 'failed to do request: Head "https://r/v2/nope/manifests/1": dial tcp: lookup r: no such host'
BASE_FAILED = f"""#3 [internal] load metadata for nope:1
#3 ERROR: {PULL}
------
 > [internal] load metadata for nope:1:
------
failed to solve with frontend dockerfile.v0: failed to create LLB definition: {PULL}"""
PIP_FAILED = """#3 [internal] load metadata for base:1
#3 DONE 0.0s
#9 [stage-1 3/9] RUN sh /tmp/build/install.sh packages
#9 sha256:12
#8 [stage-1 2/9] COPY x y
#8 DONE 0.1s
#9 1.201 ERROR: Could not find a version that satisfies the requirement torch==2.14.1 (from versions: none)
#9 1.300 ERROR: No matching distribution found for torch==2.14.1
#9 ERROR: executor failed running [/bin/sh -c sh /tmp/build/install.sh packages]: exit code: 1
------
 > [stage-1 3/9] RUN sh /tmp/build/install.sh packages:
------
executor failed running [/bin/sh -c sh /tmp/build/install.sh packages]: exit code: 1"""
ENGINE_FAILED = """Step 9/24 : RUN sh /opt/build/install.sh weights "$WEIGHTS"
 ---> Running in 62ae484824ed
\x1b[91mTraceback (most recent call last):
\x1b[0mThe command '/bin/sh -c sh /opt/build/install.sh weights' returned a non-zero code: 1"""


@pytest.mark.parametrize(
    ("lines", "first", "hint", "said"),
    [
        (BASE_FAILED, "the base image nope:1 could not be fetched", "→ without a registry", [f"  ERROR: {PULL}"]),
        (
            PIP_FAILED,
            "a package could not be installed",
            "→ check the package index",
            [
                "  ERROR: Could not find a version that satisfies the requirement torch==2.14.1 (from versions: none)",
                "  ERROR: No matching distribution found for torch==2.14.1",
            ],
        ),
        (
            ENGINE_FAILED,
            "weights could not be downloaded",
            "→ without a network",
            ["  Traceback (most recent call last):"],
        ),
        (
            "Step 2/24 : FROM ${BASE_IMAGE} AS requirements\nmanifest for nope:1 not found",
            "the base image nope:1 could not be fetched",
            "→ without a registry",
            ["  manifest for nope:1 not found"],
        ),
        (
            "#9 ERROR: write /x: no space left on device\n > [2/2] RUN dd:",
            "the engine's disk is full",
            "→ free space: launcher prune",
            ["  ERROR: write /x: no space left on device"],
        ),
    ],
)
def test_a_failed_build_is_told_in_few_whole_lines(lines: str, first: str, hint: str, said: list[str]) -> None:
    told = images.failure("cpu", "nope:1", lines.splitlines()).splitlines()
    assert told[0] == f"Dockerfile.cpu could not be built: {first}"
    assert told[1].startswith(hint) and told[2:] == said


def test_a_long_line_of_the_builder_is_not_cut_in_a_word() -> None:
    words = ["incompatible"] * 100
    last = images.failure("cpu", None, ["#9 1.0 " + " ".join(words), "#9 ERROR: executor failed"]).splitlines()[-1]
    assert len(last) < 310 and set(last.split()) == {"incompatible", "…"}


def test_each_step_is_told_once_and_whether_it_was_cached(capsys: pytest.CaptureFixture[str]) -> None:
    say = commands.builder_output(verbose=False)
    for line in (
        "#3 [internal] load metadata", "#3 DONE 0.0s", "", "#5 [a 2/2] RUN x", "#5 sha256:5213", "#5 CACHED", "",
        "#6 [b 1/2] RUN y", "#6 sha256:1", "#6 0.3 words", "#7 [b 2/2] COPY z", "#7 DONE 0.1s", "#6 [b 1/2] RUN y",
        "#6 0.5 words", "#6 DONE 0.6s", "#10 exporting to image",
        "Step 1/2 : FROM a", " ---> e2dc5c57fad3", "Step 2/2 : RUN x", " ---> Using cache", " ---> e2dc", "warned",
    ):  # fmt: skip
        say(line)
    assert capsys.readouterr().out.splitlines() == [
        "[a 2/2] RUN x  cached",
        "[b 1/2] RUN y",
        "[b 2/2] COPY z",
        "Step 1/2 : FROM a",
        "Step 2/2 : RUN x  cached",
        "warned",
    ]


def test_a_build_that_fails_says_why_and_how_on(
    dockerd: Dockerd, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockerd.base()
    client = dockerd.client()
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", dockerd.environment["PATH"])
    (tree / "images" / "install.sh").write_text("echo no such package; exit 3\n")
    for path in (dockerd.environment["PATH"], str(tmp_path)):  # by BuildKit, by the engine's own builder
        monkeypatch.setenv("PATH", path)
        with pytest.raises(EngineError, match=r"a package could not be installed\n→ .*\n.*no such package$"):
            images.build(client, "cpu", BASE, {}, ["built:broken"], lambda line: None, tree)
        with pytest.raises(EngineError, match=r"base image no-such-base:1 could not be fetched\n→ .*make-base\.sh"):
            images.build(client, "cpu", "no-such-base:1", {}, ["built:broken"], lambda line: None, tree)
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
    reason = recipe.network_reason(request(**asked), environment, tmp_path, "resnet34,deit_base_384")
    assert (reason is None) == (why is None) and (why or "") in (reason or "")


def test_cached_weights_that_are_a_link_out_of_the_cache_are_not_there_for_a_container(tmp_path: Path) -> None:
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "elsewhere").touch()
    (weights / "real").touch()
    (weights / "resnet34.safetensors").symlink_to(tmp_path / "elsewhere")
    (weights / "resnet50.safetensors").symlink_to("real")
    why = recipe.network_reason(request(fetches="resnet34"), {}, tmp_path / "cache", "")
    assert why is not None and f"{weights}/resnet34.safetensors leads out of the cache" in why
    assert recipe.network_reason(request(fetches="resnet50"), {}, tmp_path / "cache", "") is None
    assert recipe.is_stored("resnet34", tmp_path / "cache"), "a native run reads it"


def test_paths_of_the_host_are_mounted_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "vote").mkdir()
    (tmp_path / "vote" / "ensemble.json").write_text('{"members": [{"checkpoint": "../a b.ckpt"}]}')
    (tmp_path / "a b.ckpt").touch()
    command = ["train", "model.weights=w.pth", f"data.root='{tmp_path}/d'", "resume=@runs/a/001-b/last.ckpt", "seed=1"]
    told, files = recipe.words(request(command=command, cwd=str(tmp_path)), tmp_path, tmp_path / "cache")
    assert told == [
        "train",
        f"model.weights={tmp_path}/w.pth",
        f"data.root={tmp_path}/d",
        "resume=/runs/a/001-b/last.ckpt",
        "seed=1",
    ]
    assert files == [tmp_path / "w.pth", tmp_path / "d"]
    taught = request(command=["train", "training.teachers=[vote/ensemble.json,'a b.ckpt']"], cwd=str(tmp_path))
    told, files = recipe.words(taught, tmp_path, tmp_path / "cache")
    assert told[1] == f"training.teachers=[{tmp_path}/vote/ensemble.json,'{tmp_path}/a b.ckpt']"
    assert files == [tmp_path / "vote" / "ensemble.json", tmp_path / "a b.ckpt", tmp_path / "a b.ckpt"]
    (tmp_path / "last.ckpt").touch()
    assert (
        recipe.words(request(command=command, cwd=str(tmp_path)), tmp_path, tmp_path / "cache")[0][-1] == "resume=auto"
    )
    with pytest.raises(FileNotFoundError, match=r"model\.weights=gone\.pth: no such file"):
        recipe.words(
            request(command=["train", "model.weights=gone.pth"], cwd=str(tmp_path)), tmp_path, tmp_path / "cache"
        )
    with pytest.raises(FileNotFoundError, match=r"training\.teachers=gone\.ckpt: no such file"):
        recipe.words(
            request(command=["train", "training.teachers=[gone.ckpt]"], cwd=str(tmp_path)), tmp_path, tmp_path / "cache"
        )


def test_a_message_of_a_container_speaks_of_the_hosts_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIR", raising=False)
    asked = request(data_dir="/srv/data/docs", command=["train", "model.weights='/data/w.pth'"])
    run_dir = Path("/home/me/runs/job-1/001-x")

    def told(text: str) -> str:
        return recipe.on_host(text, asked, run_dir)

    assert told("/data: the data folder (DATA_DIR) is empty") == "/srv/data/docs: the data folder (DATA_DIR) is empty"
    assert told("2 faults in /data: mend") == "2 faults in /srv/data/docs: mend"
    assert told("see /runs/job-1/001-x/data_faults.txt") == "see /home/me/runs/job-1/001-x/data_faults.txt"
    assert told("DATA_DIR=/data, '/cache/weights'.") == "DATA_DIR=/srv/data/docs, '/home/me/runs/.cache/weights'."
    for kept in ("/database", "/mnt/data/x", "/data-2/x", "/data.old", "https://host/data", "file:///data", "a/runs/b"):
        assert told(kept) == kept
    assert told("/data/w.pth: no weights; /data/a.jpg") == "/data/w.pth: no weights; /srv/data/docs/a.jpg"
    assert recipe.on_host("/runs/a, /data/b", asked) == "/runs/a, /srv/data/docs/b"
    assert recipe.on_host("/data/b", request(data_dir=None)) == "/data/b", "nothing is mounted there"


def test_memory_limits_leave_no_swap_and_shm_has_a_sane_size(tmp_path: Path) -> None:
    place = recipe.Place("sha256:1", ("python",), (1000, 1000), cache=tmp_path)

    def host(loader_shm: int = 0, **resources: Any) -> dict[str, Any]:
        asked = request(resources=Resources(**resources), loader_shm=loader_shm)
        options: dict[str, Any] = recipe.options(asked, place, tmp_path / "s" / "001-x", 1, [], [])["host_config"]
        return options

    assert host(memory=4 * 2**30)["memswap_limit"] == 4 * 2**30 and host(memory=4 * 2**30)["shm_size"] == 2 * 2**30
    assert host(memory=4 * 2**30, shm=2**20)["shm_size"] == 2**20
    assert "mem_limit" not in host() and host()["shm_size"] == 2**30
    assert host(3 * 2**30)["shm_size"] == 3 * 2**30 and host(3 * 2**30, shm=2**20)["shm_size"] == 2**20


def loaded(words: list[str], text: str = "") -> spec.Job:
    return spec.load(Path("job.yaml"), words, source=text.encode() or b"name: x")


def test_the_loader_of_a_run_fits_its_shared_memory() -> None:
    """With the manual's settings on a GPU server: 15 processes of 4 batches of 16 images of 768 px, for each loader."""
    server = Machine("server", 16, 64 * 2**30, (Gpu(0),), declared=True)
    words = ["model=resnet34", "data=baseline_aug"]
    (planned, step) = expansion.expand(loaded(words, "after: [{name: vote, step: ensemble, from: {top: 1}}]"), server)
    filled = 2 * (15 * 4 + 2) * 16 * 768**2 * 3
    assert planned.request.loader_shm == step.request.loader_shm == recipe.shm_size(planned.request) == filled > 2**31
    (small,) = expansion.expand(loaded([*words, "training.num_workers=2", "training.micro_batch=4"]), server)
    assert small.request.loader_shm == 2 * (2 * 4 + 2) * 4 * 768**2 * 3 and recipe.shm_size(small.request) == 2**30
    (cpu,) = expansion.expand(loaded([*words, "training.num_workers=0"]), server, cpu_only=True)
    assert cpu.request.loader_shm == 0


def test_shared_memory_that_the_loader_overfills_is_noted_with_its_line() -> None:
    server = Machine("server", 16, 64 * 2**30, (Gpu(0),), declared=True)
    job = loaded(["model=resnet34", "data=baseline_aug"], "resources:\n  shm: 100m\n")
    planned = expansion.expand(job, server)
    noted = [line for line in remarks.before_start(job, planned, server, contained=True) if "resources.shm" in line]
    assert len(noted) == 1 and noted[0].startswith("note: job.yaml:2: resources.shm: 100 MiB, but the image loading")
    assert not [line for line in remarks.before_start(job, planned, server) if "may fill" in line], "native: no limit"


@pytest.mark.parametrize(
    "text",
    ["error: /dev/shm (64 MiB) is full: use", "RuntimeError: unable to allocate shared memory(shm) for file <x>"],
)
def test_an_end_for_lack_of_shared_memory_names_the_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.txt").write_text(f"working\n{text}\n")
    asked = request(resources=Resources(shm=64 * 2**20), shm_place="job.yaml:3")
    state = {"ExitCode": 1, "StartedAt": "", "FinishedAt": ""}
    word, reason, _ = ending(ContainerAttempt(tmp_path, 1, asked), state, False)
    assert word == "failed" and reason.endswith("; raise resources.shm: 64 MiB (job.yaml:3)")


@pytest.mark.parametrize("setting", [{"credsStore": "desktop"}, {"credHelpers": {"example.org": "gone"}}])
def test_a_stale_helper_for_credentials_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    plain = {"auths": {"https://example.com": {"auth": "bWU6c2VjcmV0"}}}
    (tmp_path / "config.json").write_text(json.dumps({**setting, **plain}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    client = docker.DockerClient(base_url="unix:///nonexistent", version="1.41")
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images._leave_out_helpers(client, said.append)
        images._leave_out_helpers(client, said.append)
        headers: dict[str, str] = {}
        client.api._set_auth_headers(headers)
    assert (
        len(said) == 1 and f"{tmp_path}/config.json names {'desktop' if 'credsStore' in setting else 'gone'}" in said[0]
    )
    assert "secret" not in said[0] and "X-Registry-Config" in headers, "logins in the file itself are still used"
    text = images.failure(
        "cpu", None, ["#3 ERROR: error getting credentials - err: exec: docker-credential-x: not found"]
    )
    assert f"remove credsStore (or credHelpers) from {tmp_path}/config.json" in text


def test_the_runs_user_is_never_root(tmp_path: Path) -> None:
    assert recipe.run_user(tmp_path) == ((1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid()))
    assert recipe.run_user(tmp_path, rootless=True) == (0, 0), "which is the caller, outside"
    if os.getuid() == 0:
        os.chown(tmp_path, 4321, 1234)
        assert recipe.run_user(tmp_path) == (4321, 1234)


@pytest.mark.parametrize(
    ("driver", "built", "level", "words"),
    [
        ((13, 0), "13.0", "ok", ""),
        ((12, 4), "12.8", "ok", "supports CUDA 12.4"),
        ((12, 4), "13.0", "missing", "TORCH_INDEX=<PyTorch's wheel index>/cu126"),
        ((12, 8), "13.0", "missing", "/cu128"),
        ((11, 8), "13.0", "missing", "install a newer driver: no wheel"),
        ((13, 0), None, "missing", "launcher build cuda"),
        (None, "13.0", "note", ""),
    ],
)
def test_a_driver_that_is_too_old_for_the_image_is_told_with_the_index_that_fits(
    driver: tuple[int, int] | None, built: str | None, level: str, words: str
) -> None:
    check = checks.cuda_check(driver, built, "2.14.1")
    assert check.level == level and words in check.said + check.fix


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
