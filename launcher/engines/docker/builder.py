"""Builds images of the trainer from a checkout, with BuildKit or with the engine's own builder."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher import CHECKOUT, __version__
from launcher.base.errors import ArgumentError, EngineError
from launcher.engines.docker import podman
from launcher.engines.docker.client import HOW, WEIGHTS, explain, settings_file
from launcher.engines.docker.images import BAKED, Image, Variant, content_hash, find
from trainer.base import provenance
from trainer.base.brief import in_brief
from trainer.base.errors import nearest

if TYPE_CHECKING:
    from docker import DockerClient


_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
"""Build arguments that every builder accepts, also in lower case, and keeps out of the image's history."""
_OWN = ("VERSION", "GIT_SHA", "CONTENT_HASH")
"""Build arguments that `build` sets itself."""


def build(
    client: DockerClient,
    variant: Variant,
    base: str | None,
    arguments: Mapping[str, str],
    tags: Sequence[str],
    say: Callable[[str], None],
    root: Path = CHECKOUT,
) -> Image:
    """Build an image from the checkout at `root`, with BuildKit if a docker client has it, else with the engine's own
    builder. Every line of output goes to `say`. Raises EngineError, and ArgumentError before the build starts."""
    if not (root / f"Dockerfile.{variant}").is_file():
        raise EngineError(f"{root}: no Dockerfile.{variant}; run this command in a checkout of the project")
    _check_arguments(root, variant, arguments)
    how = ["--base", base] if base else []
    for key, value in arguments.items():
        if (
            key.upper() not in _PROXIES or "@" not in value
        ):  # everybody can read labels, so they must not have a proxy's password
            how += ["--build-arg", f"{key}={value}"]
    values = dict(arguments)
    folder = _weights_folder(values.get("WEIGHTS", ""))
    if folder is not None:
        values["WEIGHTS"] = ""
    names = [name for name in values.get("WEIGHTS", "").split(",") if name]
    if variant == "cpu" and not values.get("TORCH_INDEX") and platform.machine() in ("x86_64", "AMD64"):
        say(
            "note: without TORCH_INDEX torch is its CUDA build, and this image is as large as the CUDA one; "
            "--build-arg TORCH_INDEX=<CPU wheel index> saves gigabytes"
        )
    labels = {
        WEIGHTS: ",".join(sorted({*names, *_stored(folder or root / "images" / "weights")})),
        HOW: shlex.join(how),
    }
    if base:
        values["BASE_IMAGE"] = base
    values |= {
        "VERSION": __version__,
        "GIT_SHA": _revision(root),
        "CONTENT_HASH": content_hash(root, variant),
    }
    of_podman = _is_podman(client)  # its API has no BuildKit
    command = None if of_podman else buildkit_command()
    with _context(root, variant, folder, with_mounts=command is not None) as context:
        if command:
            _by_buildkit(command, context, variant, values, labels, tags, say)
        else:
            why = "Podman" if of_podman else "no docker client with BuildKit on PATH"
            say(f"{why}: using the engine's own builder, without a cache of packages")
            _leave_out_helpers(client, say)
            _by_engine(client, context, variant, values, labels, tags, say)
    image = find(client, tags[0])
    if image is None:
        raise EngineError(f"{tags[0]}: was built, but the launcher's engine does not have it; check: docker context ls")
    return image


def _check_arguments(root: Path, variant: str, arguments: Mapping[str, str]) -> None:
    """Raises ArgumentError if the Dockerfile has no such ARG, and for a secret that would stay in the image."""
    text = (root / f"Dockerfile.{variant}").read_text(encoding="utf-8")
    valid = [name for name in dict.fromkeys(re.findall(r"^ARG (\w+)", text, re.M)) if name not in _OWN]
    for key in arguments:
        if key not in valid and key.upper() not in _PROXIES:
            near = nearest(key, valid)
            every = "" if near.startswith("valid") else f" (valid: {', '.join(valid)})"
            raise ArgumentError(f"--build-arg {key}: unknown argument of Dockerfile.{variant}; {near}{every}")
    if "@" in arguments.get("TORCH_INDEX", "").partition("?")[0]:
        raise ArgumentError(
            "TORCH_INDEX: contains a user or password, which everybody could read in the image's history; "
            "give an index that needs no password, like a mirror or a proxy in your network"
        )


def _weights_folder(value: str) -> Path | None:
    """The folder that WEIGHTS names; None if it names models. Raises ArgumentError for a folder without weights."""
    folder = Path(value).expanduser()
    if value and folder.is_dir():
        if not _stored(folder):
            raise ArgumentError(f"WEIGHTS={value}: has no <timm name>.safetensors and no folder of a hub's cache")
        return folder
    for word in value.split(","):
        if word.startswith((".", "~")) or ("/" in word and ":" not in word):  # but not hf-hub:organisation/model
            raise ArgumentError(f"WEIGHTS={value}: no folder {word}; give a folder, or timm's names of models")
    return None


def buildkit_command() -> list[str] | None:
    """The command for a build with BuildKit: a docker client on PATH with buildx, or one before version 23, which needs
    no buildx. None without one."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        tool = shutil.which("docker", path=folder) if folder else None
        if tool is None:
            continue
        if _answers(tool, "buildx", "version"):
            # Without --load a builder of buildx keeps the image to itself. `docker build` may not know --load.
            return [tool, "buildx", "build", "--load"]
        version = re.search(r"version (\d+)\.", _answers(tool, "--version"))
        if version and 18 <= int(version[1]) < 23:
            return [tool, "build"]
    return None


def _answers(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _is_podman(client: DockerClient) -> bool:
    with contextlib.suppress(Exception):  # the build itself will report the engine's error
        return podman.is_podman(client.info())
    return False


def _leave_out_helpers(client: DockerClient, say: Callable[[str], None]) -> None:
    """Build without credentials if a helper that the docker client's settings name does not work: the SDK would stop,
    even if the build needs no login."""
    from docker.auth import INDEX_URL, AuthConfig

    configs = getattr(getattr(client, "api", None), "_auth_configs", None)
    if not isinstance(configs, AuthConfig) or not (configs.creds_store or configs.cred_helpers):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the SDK also warns about a helper that is not installed
            configs.get_all_credentials()  # type: ignore[no-untyped-call]
    except Exception as error:  # of the SDK, or whatever the helper prints
        helpers = (configs.creds_store, *dict(configs.cred_helpers or {}).values())
        named = ", ".join(dict.fromkeys(str(helper) for helper in helpers if helper))
        reason = in_brief(str(error), 120)
        say(
            f"note: building without the logins of credential helpers: {settings_file()} names {named}, "
            f"which does not work here ({reason}); remove credsStore or credHelpers there if you do not use it"
        )
        # An empty configuration would make the SDK read the file again.
        plain = AuthConfig({"auths": dict(configs.auths) or {INDEX_URL: {}}})
        client.api._auth_configs = plain  # type: ignore[attr-defined]


def _stored(folder: Path) -> list[str]:
    """timm's names of the weights in a folder: files, and folders of a hub's cache."""
    hub = [path.name.removeprefix("models--timm--").partition(".")[0] for path in folder.glob("models--timm--*")]
    return [path.stem for path in folder.glob("*.safetensors")] + hub


@contextlib.contextmanager
def _context(root: Path, variant: str, weights: Path | None, with_mounts: bool) -> Iterator[Path]:
    """A folder with the Dockerfile and the files that it copies. `with_mounts`: add a mount for pip's cache."""
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        context = Path(name)
        shutil.copy(root / "pyproject.toml", context)
        skip = shutil.ignore_patterns("__pycache__", "weights" if weights else "")
        for folder in ("trainer", "images"):
            shutil.copytree(root / folder, context / folder, ignore=skip)
        if weights:
            shutil.copytree(weights, context / "images" / "weights", copy_function=_link)
        text = (root / f"Dockerfile.{variant}").read_text(encoding="utf-8")
        if with_mounts:
            text = with_cache(text)
        (context / "Dockerfile").write_text(text, encoding="utf-8")
        yield context


def with_cache(dockerfile: str) -> str:
    """The Dockerfile, changed so that the step that installs packages caches them for the next build."""
    step = r"^RUN (?=sh \S+/install\.sh packages$)"
    return re.sub(step, "RUN --mount=type=cache,target=/root/.cache/pip ", dockerfile, flags=re.M)


def _link(source: str, target: str) -> str:
    real = os.path.realpath(source)  # a hub's cache has links to its blobs
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
    return target


def _by_buildkit(
    command: Sequence[str], context: Path, variant: str, values: Mapping[str, str], labels: Mapping[str, str],
    tags: Sequence[str], say: Callable[[str], None],
) -> None:  # fmt: skip
    command = [*command, "--progress=plain"]
    for tag in tags:
        command += ["--tag", tag]
    for key, value in values.items():
        command += ["--build-arg", f"{key}={value}"]
    for key, value in labels.items():
        command += ["--label", f"{key}={value}"]
    process = subprocess.Popen(
        [*command, str(context)],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last: list[str] = []
    try:
        for line in process.stdout:
            say(line.rstrip())
            last = [*last, line.strip()][-_KEPT:]
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
    if code:
        raise EngineError(failure(variant, values.get("BASE_IMAGE"), last))


def _by_engine(
    client: DockerClient, context: Path, variant: str, values: Mapping[str, str], labels: Mapping[str, str],
    tags: Sequence[str], say: Callable[[str], None],
) -> None:  # fmt: skip
    last: list[str] = []
    try:
        stream = client.api.build(
            path=str(context), tag=tags[0], buildargs=dict(values), labels=dict(labels), rm=True, forcerm=True,
            decode=True, timeout=7200,
        )  # fmt: skip
        for event in stream:
            if "error" in event:
                say("")  # no more output of the current step
                raise EngineError(failure(variant, values.get("BASE_IMAGE"), [*last, str(event["error"])]))
            for line in str(event.get("stream", "")).splitlines():
                if line.strip():
                    say(line.rstrip())
                    last = [*last, line.strip()][-_KEPT:]
        image = client.images.get(tags[0])
        for tag in tags[1:]:
            name, _, version = tag.rpartition(":") if ":" in tag.rpartition("/")[2] else (tag, "", "latest")
            image.tag(name, version)  # Podman takes them only one by one
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"Dockerfile.{variant} could not be built: {explain(error)}") from None


_KEPT = 60
"""Number of the builder's last lines to keep for the reason of a failure: pip prints it at the end."""
_NOISE = re.compile(
    r"$|-+$|#\d+ |> \[|\[|sha256:|(DONE|CACHED|CANCELED)\b|Step \d+/|--->|Removing intermediate|Dockerfile:\d+$|\d+ \|"
)
_REPEATED = re.compile(r"(ERROR: )?(executor failed|failed to (solve|build)|process \"|The command ')")
"""The builder's summary of a failed step; the step's own output says more."""


def failure(variant: str, base: str | None, lines: Sequence[str]) -> str:
    """The error message from a builder's last lines: what failed, a fix if known, and the step's last output."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in lines]
    step = next((line for line in reversed(lines) if re.match(r"> \[|Step \d+/\d+ : ", line)), "")
    number = next((match[1] for line in lines if (match := re.match(r"#(\d+) ERROR", line))), None)
    # BuildKit runs several steps at once: only lines with the number of the failed step count.
    own = [line.removeprefix(f"#{number} ") for line in lines if line.startswith(f"#{number} ")] if number else lines
    output = [line for line in (re.sub(r"^\d+\.\d+ ", "", line) for line in own) if not _NOISE.match(line)]
    text = " ".join(output)
    if "no space left" in text.lower():
        what, hint = "the engine's disk is full", "free space: launcher prune"
    elif "error getting credentials" in text:
        what = "a credential helper of the docker client does not work here"
        hint = f"remove credsStore (or credHelpers) from {settings_file()}"
    elif "load metadata for" in step or re.search(r"(: |\] )FROM ", step):
        what = f"the base image{f' {base}' if base else ''} could not be fetched"
        hint = "without a registry: images/make-base.sh, then --base document-classifier-base:bookworm"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        what = "the base image does not trust the certificate of a download server"
        hint = "behind a proxy with its own certificate: images/make-base.sh puts your site's CA bundle into a base"
    elif "install.sh packages" in step:
        what = "a package could not be installed"
        hint = "check the package index; TORCH_INDEX, if given, must have the versions of constraints.txt"
    elif "install.sh weights" in step:
        what = "weights could not be downloaded"
        hint = "without a network: --build-arg WEIGHTS=FOLDER with <timm name>.safetensors files"
    else:
        what, hint = " ".join(("the builder failed", step.strip("> :"))).strip(), ""
    telling = list(dict.fromkeys(line for line in output if not _REPEATED.match(line))) or output or lines
    excerpt = ["  " + (textwrap.shorten(line, 300, placeholder=" …") if " " in line else line) for line in telling[-3:]]
    return "\n".join([f"Dockerfile.{variant} could not be built: {what}", *([f"→ {hint}"] if hint else []), *excerpt])


def _revision(root: Path) -> str:
    """The commit of the checkout, with `-dirty` if it has changed since, `-unknown` if git fails."""
    return provenance.revision(root, (*BAKED, "pyproject.toml"))
