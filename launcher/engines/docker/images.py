"""Images of the trainer: what their labels say, whether they are what this checkout holds, and which one a job gets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher import CHECKOUT
from launcher.base.errors import EngineError
from launcher.engines.docker import podman
from launcher.engines.docker.client import CONTENT, HOW, VARIANT, WEIGHTS, explain, seconds

if TYPE_CHECKING:
    from docker import DockerClient

Variant = Literal["cpu", "cuda"]
REPOSITORY = "document-classifier"
BAKED = ("trainer", "images/constraints.txt", "images/install.sh", "images/requirements.py")


@dataclass(frozen=True)
class Image:
    """An image of the trainer on the engine. `size` in bytes; `stale` None if it cannot be compared."""

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
    """The options of its `launcher build`."""
    content: str = ""
    """The hash of its content; empty if its labels do not have it, as after a `docker build` by hand."""

    @property
    def name(self) -> str:
        return self.tags[0] if self.tags else self.id.removeprefix("sha256:")[:12]

    @property
    def build_command(self) -> str:
        """The command that builds it again from this checkout, with the same name and options."""
        words = ["launcher", "build", self.variant, *self.built_with]
        if self.tags and default_tag(self.variant) not in self.tags:
            words += ["--tag", self.tags[0]]
        return shlex.join(words)


def default_tag(variant: str) -> str:
    """The name that `launcher build` gives an image, and `image: auto` looks for."""
    return f"{REPOSITORY}:{variant}"


def content_hash(root: Path, variant: str) -> str:
    """SHA-256 of an image's content: code, pins, requirements and the Dockerfile. Raises OSError."""
    digest = hashlib.sha256()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["version"], project["dependencies"], project["optional-dependencies"]["train"]]
    digest.update(json.dumps(wanted).encode())
    files = [root / f"Dockerfile.{variant}"]
    for name in BAKED:
        path = root / name
        files += sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for path in files:
        if "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def describe(attributes: Mapping[str, Any], root: Path = CHECKOUT) -> Image:
    """An image from the engine's attributes (`docker image inspect`)."""
    labels = (attributes.get("Config") or {}).get("Labels") or {}
    variant, content = labels.get(VARIANT, ""), labels.get(CONTENT, "")
    if content == "unknown":  # the Dockerfile's default
        content = ""
    stale = None
    if variant and content:
        with contextlib.suppress(OSError, KeyError, ValueError):  # no checkout here to compare with
            stale = content_hash(root, variant) != content
    return Image(
        attributes["Id"],
        tuple(podman.plain_name(tag) for tag in attributes.get("RepoTags") or () if not tag.startswith("<none>")),
        variant,
        _utc(str(attributes.get("Created") or "")),
        int(attributes.get("Size") or 0),
        labels.get("org.opencontainers.image.version", ""),
        labels.get("org.opencontainers.image.revision", ""),
        labels.get(WEIGHTS, ""),
        stale,
        tuple((attributes.get("Config") or {}).get("Entrypoint") or ()),
        tuple(shlex.split(labels.get(HOW, ""))),
        content,
    )


def _utc(text: str) -> str:
    """The engine's time like 2026-11-24T12:00:00, in UTC; empty if it is unknown."""
    moment = seconds(text)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) if moment else ""


def listed(client: DockerClient) -> list[Image]:
    """The trainer's images on the engine, tagged ones first, newest first. Raises EngineError."""
    try:
        labelled = client.images.list(all=False, filters={"label": VARIANT})
        images = [describe(image.attrs) for image in labelled]
    except Exception as error:
        raise EngineError(f"cannot list the Docker engine's images: {explain(error)}") from None
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
    """The image for a job's `image:`. auto: cuda for runs on GPUs, else cpu; if it does not exist, the other one.

    Raises EngineError with the command that builds or pulls it.
    """
    if wanted != "auto":
        image = find(client, wanted)
        if image is None:
            variant = wanted.removeprefix(REPOSITORY + ":")
            get = f"launcher build {variant}" if variant in ("cpu", "cuda") else f"docker pull {wanted}"
            raise EngineError(f"the Docker engine has no image {wanted}; get it: {get}")
        return image
    variant = "cuda" if gpus else "cpu"
    image = find(client, default_tag(variant)) or (None if gpus else find(client, default_tag("cuda")))
    if image is None:
        raise EngineError(f"the Docker engine has no image {default_tag(variant)}; build it: launcher build {variant}")
    return image


def stale_warning(image: Image) -> str | None:
    """The warning about an image that differs from this checkout, or has no label for its content."""
    if image.variant and not image.content:
        return (
            f"warning: image {image.name} has no label for its content (it was built without the launcher); "
            f"rebuild it: {image.build_command}"
        )
    if not image.stale:
        return None
    return (
        f"warning: image {image.name} is older than this checkout (the trainer or its pins have changed); "
        f"rebuild it: {image.build_command}"
    )
