"""How an image is built by either builder, and what a build that fails says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import docker
import pytest

from launcher.base.errors import ArgumentError, EngineError
from launcher.cli import images as commands
from launcher.engines.docker import builder, images
from tests.docker_engine import BASE, REPOSITORY, Dockerd


def test_the_dockerfiles_differ_in_what_they_must_and_are_plain() -> None:
    cpu, cuda = ((REPOSITORY / f"Dockerfile.{variant}").read_text() for variant in ("cpu", "cuda"))
    assert "--mount" not in cpu + cuda, "a builder that is not BuildKit knows none"
    for text in (cpu, cuda):
        assert builder.with_cache(text).count("RUN --mount=type=cache,target=/root/.cache/pip sh ") == 1
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
    assert builder.buildkit_command() is None
    monkeypatch.setenv("PATH", f"{tmp_path}/bare{os.pathsep}{tmp_path}/old")
    assert builder.buildkit_command() == [f"{tmp_path}/old/docker", "build"]
    monkeypatch.setenv("PATH", f"{tmp_path}/bare{os.pathsep}{tmp_path}/plugin")
    assert builder.buildkit_command() == [f"{tmp_path}/plugin/docker", "buildx", "build", "--load"]


@pytest.mark.parametrize("way", ["BuildKit", "the engine's own"])
def test_either_builder_builds_the_real_dockerfiles(
    dockerd: Dockerd, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    dockerd.base()
    monkeypatch.setenv("DOCKER_HOST", dockerd.host)
    monkeypatch.setenv("PATH", dockerd.environment["PATH"] if way == "BuildKit" else str(tmp_path))
    said: list[str] = []
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "resnet34.safetensors").write_bytes(b"weights")
    client = dockerd.client()
    for variant in ("cpu", "cuda"):
        tags = [f"built:{variant}", f"built:{variant}-too"]
        values = {"WEIGHTS": str(tmp_path / "w"), "TORCH_INDEX": "http://elsewhere"}
        image = builder.build(client, variant, BASE, values, tags, said.append, tree)  # type: ignore[arg-type]
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
    assert ("no docker client with BuildKit" in said[0]) == (way != "BuildKit")


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
    monkeypatch.setattr(builder, "_by_buildkit", NoEngine().__getattr__)
    said: list[str] = []
    with pytest.raises(ArgumentError) as refused:
        builder.build(NoEngine(), "cpu", None, arguments, ["built:secret"], said.append)  # type: ignore[arg-type]
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
    told = builder.failure("cpu", "nope:1", lines.splitlines()).splitlines()
    assert told[0] == f"Dockerfile.cpu could not be built: {first}"
    assert told[1].startswith(hint) and told[2:] == said


def test_a_long_line_of_the_builder_is_not_cut_in_a_word() -> None:
    words = ["incompatible"] * 100
    last = builder.failure("cpu", None, ["#9 1.0 " + " ".join(words), "#9 ERROR: executor failed"]).splitlines()[-1]
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
            builder.build(client, "cpu", BASE, {}, ["built:broken"], lambda line: None, tree)
        with pytest.raises(EngineError, match=r"base image no-such-base:1 could not be fetched\n→ .*make-base\.sh"):
            builder.build(client, "cpu", "no-such-base:1", {}, ["built:broken"], lambda line: None, tree)
    with pytest.raises(EngineError, match=r"no Dockerfile\.cuda"):
        builder.build(client, "cuda", BASE, {}, ["built:broken"], lambda line: None, tmp_path)
    assert images.find(client, "built:broken") is None


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
        builder._leave_out_helpers(client, said.append)
        builder._leave_out_helpers(client, said.append)
        headers: dict[str, str] = {}
        client.api._set_auth_headers(headers)
    assert (
        len(said) == 1 and f"{tmp_path}/config.json names {'desktop' if 'credsStore' in setting else 'gone'}" in said[0]
    )
    assert "secret" not in said[0] and "X-Registry-Config" in headers, "logins in the file itself are still used"
    text = builder.failure(
        "cpu", None, ["#3 ERROR: error getting credentials - err: exec: docker-credential-x: not found"]
    )
    assert f"remove credsStore (or credHelpers) from {tmp_path}/config.json" in text
