"""Images of the trainer: built from this checkout, compared with it, chosen for a job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher import __version__
from launcher.checkout import ROOT, git_sha
from launcher.containers import CONTENT, HOW, VARIANT, WEIGHTS, EngineError, explain

if TYPE_CHECKING:
    from docker import DockerClient

Variant = Literal["cpu", "cuda"]
REPOSITORY = "document-classifier"
_BAKED = ("trainer", "images/constraints.txt", "images/install.sh", "images/requirements.py")
_UNKNOWN = ("", "unknown", None)


@dataclass(frozen=True)
class Image:
    """An image of the trainer on the engine. `size` in bytes; `stale` None where nothing says what is baked in."""

    id: str
    tags: tuple[str, ...]
    variant: str
    created: str
    size: int
    version: str
    git_sha: str
    weights: str
    stale: bool | None
    entrypoint: tuple[str, ...] = ()
    built_with: tuple[str, ...] = ()
    """The options of `launcher build` that it was built with."""

    @property
    def name(self) -> str:
        return self.tags[0] if self.tags else self.id.removeprefix("sha256:")[:12]

    @property
    def build_command(self) -> str:
        """The command that builds it anew from this checkout, under the same name and with the same options."""
        words = ["launcher", "build", self.variant, *self.built_with]
        if self.tags and default_tag(self.variant) not in self.tags:
            words += ["--tag", self.tags[0]]
        return shlex.join(words)


def default_tag(variant: str) -> str:
    """What `launcher build` calls an image, and `image: auto` looks for."""
    return f"{REPOSITORY}:{variant}"


def content_hash(root: Path, variant: str) -> str:
    """SHA-256 of what is baked into an image: code, pins, requirements and the Dockerfile. Raises OSError."""
    digest = hashlib.sha256()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["version"], project["dependencies"], project["optional-dependencies"]["train"]]
    digest.update(json.dumps(wanted).encode())
    files = [root / f"Dockerfile.{variant}"]
    for name in _BAKED:
        path = root / name
        files += sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for path in files:
        if "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def describe(attributes: Mapping[str, Any], root: Path = ROOT) -> Image:
    """An image by what the engine says of it (`docker image inspect`)."""
    labels = (attributes.get("Config") or {}).get("Labels") or {}
    variant, content = labels.get(VARIANT, ""), labels.get(CONTENT)
    stale = None
    if variant and content not in _UNKNOWN:
        with contextlib.suppress(OSError, KeyError, ValueError):  # no checkout here: nothing to compare with
            stale = content_hash(root, variant) != content
    return Image(
        attributes["Id"],
        tuple(attributes.get("RepoTags") or ()),
        variant,
        str(attributes.get("Created", ""))[:19],
        int(attributes.get("Size") or 0),
        labels.get("org.opencontainers.image.version", ""),
        labels.get("org.opencontainers.image.revision", ""),
        labels.get(WEIGHTS, ""),
        stale,
        tuple((attributes.get("Config") or {}).get("Entrypoint") or ()),
        tuple(shlex.split(labels.get(HOW, ""))),
    )


def listed(client: DockerClient) -> list[Image]:
    """The trainer's images on the engine, tagged ones first, newest first. Raises EngineError."""
    try:
        found = client.images.list(all=False, filters={"label": VARIANT})
        images = [describe(image.attrs) for image in found]
    except Exception as error:
        raise EngineError(f"the Docker engine does not list its images: {explain(error)}") from None
    return sorted(images, key=lambda image: (bool(image.tags), image.created), reverse=True)


def find(client: DockerClient, reference: str) -> Image | None:
    """The image called `reference`, or None. Raises EngineError."""
    from docker.errors import ImageNotFound, NullResource

    try:
        return describe(client.images.get(reference).attrs)
    except (ImageNotFound, NullResource):
        return None
    except Exception as error:
        raise EngineError(f"image {reference}: {explain(error)}") from None


def resolve(client: DockerClient, wanted: str, gpus: bool) -> Image:
    """The image for a job's `image:` (auto: cuda for runs on GPUs, else cpu, and whichever is there where that is not).

    Raises EngineError with the command that makes it.
    """
    if wanted != "auto":
        image = find(client, wanted)
        if image is None:
            variant = wanted.removeprefix(REPOSITORY + ":")
            get = f"launcher build {variant}" if variant in ("cpu", "cuda") else f"docker pull {wanted}"
            raise EngineError(f"image {wanted} is not on the Docker engine; get it: {get}")
        return image
    variant = "cuda" if gpus else "cpu"
    image = find(client, default_tag(variant)) or (None if gpus else find(client, default_tag("cuda")))
    if image is None:
        raise EngineError(
            f"there is no image {default_tag(variant)} on the Docker engine; make it: launcher build {variant}"
        )
    return image


def stale_warning(image: Image) -> str | None:
    """What to tell of an image that is not what this checkout would build."""
    if not image.stale:
        return None
    return (
        f"warning: image {image.name} is not what is here now (the trainer or its pins have changed); "
        f"renew it: {image.build_command}"
    )


def build(
    client: DockerClient,
    variant: Variant,
    base: str | None,
    arguments: Mapping[str, str],
    tags: Sequence[str],
    say: Callable[[str], None],
    root: Path = ROOT,
) -> Image:
    """Build an image from the checkout at `root`, with BuildKit where a docker client has it, else by the engine's own
    builder; every line of either goes to `say`. Raises EngineError."""
    if not (root / f"Dockerfile.{variant}").is_file():
        raise EngineError(f"{root}: there is no Dockerfile.{variant}; images are built from a checkout of the project")
    how = ["--base", base] if base else []
    for key, value in arguments.items():
        if "@" not in value:  # the address of an index may hold a password, and labels are for all to read
            how += ["--build-arg", f"{key}={value}"]
    values = dict(arguments)
    weights = Path(values.get("WEIGHTS", "")).expanduser()
    folder = weights if values.get("WEIGHTS") and weights.is_dir() else None
    if folder is not None:
        if not _stored(folder):
            raise EngineError(f"WEIGHTS={folder}: holds no <timm name>.safetensors and no folder of a hub's cache")
        values["WEIGHTS"] = ""
    names = [name for name in values.get("WEIGHTS", "").split(",") if name]
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
    tool = buildkit_client()
    with _context(root, variant, folder, with_mounts=tool is not None) as context:
        if tool:
            _by_buildkit(tool, context, variant, values, labels, tags, say)
        else:
            say("no docker client with BuildKit is on PATH: the engine's own builder, without its cache of packages")
            _by_engine(client, context, variant, values, labels, tags, say)
    image = find(client, tags[0])
    if image is None:
        raise EngineError(
            f"{tags[0]}: was built, but the engine of the launcher does not have it: another docker context?"
        )
    return image


def buildkit_client() -> str | None:
    """A docker client on PATH that builds with BuildKit: one with buildx, or one before 23, which needs none."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        tool = shutil.which("docker", path=folder) if folder else None
        if tool is None:
            continue
        if _answers(tool, "buildx", "version"):
            return tool
        version = re.search(r"version (\d+)\.", _answers(tool, "--version"))
        if version and 18 <= int(version[1]) < 23:
            return tool
    return None


def _answers(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _stored(folder: Path) -> list[str]:
    """timm's names of the weights in a folder: files, and folders of a hub's cache."""
    hub = [path.name.removeprefix("models--timm--").partition(".")[0] for path in folder.glob("models--timm--*")]
    return [path.stem for path in folder.glob("*.safetensors")] + hub


@contextlib.contextmanager
def _context(root: Path, variant: str, weights: Path | None, with_mounts: bool) -> Iterator[Path]:
    """A folder with just what the Dockerfile copies, and that file: without `--mount` for builders that know none."""
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        context = Path(name)
        shutil.copy(root / "pyproject.toml", context)
        skip = shutil.ignore_patterns("__pycache__", "weights" if weights else "")
        for folder in ("trainer", "images"):
            shutil.copytree(root / folder, context / folder, ignore=skip)
        if weights:
            shutil.copytree(weights, context / "images" / "weights", copy_function=_link)
        text = (root / f"Dockerfile.{variant}").read_text(encoding="utf-8")
        if not with_mounts:
            text = re.sub(r"--mount=\S+\s+", "", text)
        (context / "Dockerfile").write_text(text, encoding="utf-8")
        yield context


def _link(source: str, target: str) -> str:
    real = os.path.realpath(source)  # a hub's cache holds links to its blobs
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
    return target


def _by_buildkit(
    tool: str, context: Path, variant: str, values: Mapping[str, str], labels: Mapping[str, str], tags: Sequence[str],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    command = [tool, "build", "--progress=plain"]
    for tag in tags:
        command += ["--tag", tag]
    for key, value in values.items():
        command += ["--build-arg", f"{key}={value}"]
    for key, value in labels.items():
        command += ["--label", f"{key}={value}"]
    if _answers(tool, "buildx", "version"):
        command.append("--load")  # a buildx builder of its own keeps what it built to itself
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
            last = [*last, line.strip()][-12:]
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
    if code:
        raise EngineError(f"Dockerfile.{variant} could not be built: {_why(last)}")


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
                raise EngineError(f"Dockerfile.{variant} could not be built: {_why([*last, event['error']])}")
            for line in str(event.get("stream", "")).splitlines():
                if line.strip():
                    say(line.rstrip())
                    last = [*last, line.strip()][-12:]
        image = client.images.get(tags[0])
        for tag in tags[1:]:
            image.tag(tag)
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"Dockerfile.{variant} could not be built: {explain(error)}") from None


def _why(lines: Sequence[str]) -> str:
    """The builder's last words, and the way out of what commonly goes wrong."""
    text = " ".join(line for line in lines if line)
    if (
        "pull access denied" in text
        or "failed to resolve" in text
        or "lookup" in text
        or "failed to do request" in text
    ):
        hint = "; without a registry: images/make-base.sh, then --base document-classifier-base:bookworm"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        hint = "; a proxy signs its own certificates here: images/make-base.sh puts the site's CA bundle into a base"
    elif "no space left" in text.lower():
        hint = "; the engine's disk is full: launcher prune"
    else:
        hint = ""
    return text[-500:] + hint


def _revision(root: Path) -> str:
    """The commit of the checkout, with `-dirty` where it has changed since."""
    sha = git_sha(root)
    changed = _answers("git", "-C", str(root), "status", "--porcelain", "--", *_BAKED, "pyproject.toml")
    return "unknown" if sha is None else sha + ("-dirty" if changed.strip() else "")
