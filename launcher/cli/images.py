"""`launcher build` and `launcher images`: the trainer's images."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher.base.errors import RefusedError
from launcher.cli.options import json_option, print_table
from trainer.base.errors import EXIT_USAGE

if TYPE_CHECKING:
    from rich.table import Table

    from launcher.engines.docker.images import Image

T = TypeVar("T")


@click.command(short_help="Build an image of the trainer")
@click.argument("variant", type=click.Choice(["cpu", "cuda"]))
@click.option("--base", metavar="IMAGE", help="Base image (default: a public slim Python).")
@click.option("--build-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="TORCH_INDEX, WEIGHTS, …")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME", help="Name of the image (default: document-classifier:VARIANT)."
)
@click.option("-v", "--verbose", is_flag=True, help="Print the builder's whole output.")
def build(variant: Any, base: str | None, arguments: tuple[str, ...], tags: tuple[str, ...], verbose: bool) -> None:
    """Build an image of the trainer from this checkout.

    Without a registry, make a base first: images/make-base.sh; then --base document-classifier-base:bookworm.
    --build-arg WEIGHTS=resnet34,resnet50 (or a folder) puts ImageNet weights into the image; TORCH_INDEX=… installs
    torch from another package index.
    """
    from launcher.engines.docker import builder, images
    from launcher.engines.docker import client as docker_client

    for word in arguments:
        if "=" not in word:
            raise RefusedError(f"--build-arg {word}: write KEY=VALUE", EXIT_USAGE)
    client = docker_client.connect()
    image, seconds = timed(
        lambda: builder.build(
            client, variant, base, dict(word.split("=", 1) for word in arguments),
            tags or (images.default_tag(variant),), builder_output(verbose),
        )
    )  # fmt: skip
    baked = f"; weights: {image.weights.replace(',', ', ')}" if image.weights else ""
    click.echo(f"{', '.join(image.tags)}: {image.size / 1e9:.2f} GB, built in {seconds:.1f} s{baked}")


@click.command("images", short_help="List the trainer's images")
@json_option
def images_command(as_json: bool) -> None:
    """List the trainer's images. Shows whether each is up to date with this checkout."""
    from launcher.engines.docker import client as docker_client
    from launcher.engines.docker import images

    trainer_images = images.listed(docker_client.connect())
    if as_json:
        click.echo(json.dumps([vars(image) for image in trainer_images], indent=2))
    elif trainer_images:
        print_table(image_table(trainer_images))
        for warning in filter(None, (images.stale_warning(image) for image in trainer_images if image.tags)):
            click.echo(warning)
    else:
        click.echo("no image of the trainer; build one: launcher build cpu (or cuda)")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Call `action`. Returns its result and its duration in seconds."""
    began = time.monotonic()
    return action(), time.monotonic() - began


def builder_output(verbose: bool) -> Callable[[str], None]:
    """A printer for the builder's output: all lines, or one line per step, which says whether the step was cached."""
    seen: set[str] = set()
    current = ""  # the step whose line is still open: the builder's next line says whether it was cached

    def say(line: str) -> None:
        nonlocal current
        if verbose:
            click.echo(line)
            return
        step = re.match(r"(#\d+ |)(\[(?!internal\]).*|Step \d+/.*)", line)
        if current and not re.match(r"#\d+ sha256:", line):
            click.echo("  cached" if line in (f"{current}CACHED", " ---> Using cache") else "")
            current = ""
        if step and step[2] not in seen:
            seen.add(step[2])
            current = step[1] or "Step"
            click.echo(step[2], nl=False)
        elif not step and not re.match(
            r"(#\d+ |#\d+$|$|-+$| > \[| --->|Removing|Successfully|sha256:|failed to solve|executor failed)", line
        ):
            click.echo(line)

    return say


def image_table(images: Sequence[Image]) -> Table:
    """The trainer's images as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("image", "variant", "size", "built (UTC)", "version", "commit", "weights", "against this checkout"):
        table.add_column(title, overflow="fold")
    words = {True: "stale", False: "the same", None: "unknown: not built by `launcher build`"}
    for image in images:
        sha, dash, state = image.git_sha.partition("-")
        name = ", ".join(image.tags) or f"{image.name} (replaced)"
        table.add_row(
            name, image.variant, f"{image.size / 1e9:.2f} GB", image.created.replace("T", " "), image.version,
            sha[:10] + dash + state, image.weights, words[image.stale],
        )  # fmt: skip
    return table
