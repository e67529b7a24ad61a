"""Commands on images, and what clears up: build, images, prune. Registered by `launcher.cli.main`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from launcher.base.errors import RefusedError, refusals
from launcher.cli.main import _print, cli, json_option, runs_option
from launcher.remote.host_option import on_host


@cli.command()
@click.argument("variant", type=click.Choice(["cpu", "cuda"]))
@click.option("--base", metavar="IMAGE", help="Base image (default: a public slim Python).")
@click.option("--build-arg", "arguments", multiple=True, metavar="KEY=VALUE", help="TORCH_INDEX, WEIGHTS, …")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME", help="Name of the image (default: document-classifier:VARIANT)."
)
@click.option("-v", "--verbose", is_flag=True, help="Print everything that the builder says.")
def build(variant: Any, base: str | None, arguments: tuple[str, ...], tags: tuple[str, ...], verbose: bool) -> None:
    """Build an image of the trainer from this checkout.

    Without a registry, make a base first: images/make-base.sh; then --base document-classifier-base:bookworm.
    --build-arg WEIGHTS=resnet34,resnet50 (or a folder) bakes ImageNet weights in; TORCH_INDEX=… takes torch from
    another wheel index.
    """
    from launcher.cli import tables
    from launcher.engines.docker import client as containers
    from launcher.engines.docker import images

    for word in arguments:
        if "=" not in word:
            raise RefusedError(f"--build-arg {word}: write KEY=VALUE", 64)
    with refusals():
        client = containers.connect()
        image, seconds = tables.timed(
            lambda: images.build(
                client, variant, base, dict(word.split("=", 1) for word in arguments),
                tags or (images.default_tag(variant),), tables.builder_output(verbose),
            )
        )  # fmt: skip
    baked = f"; weights: {image.weights.replace(',', ', ')}" if image.weights else ""
    click.echo(f"{', '.join(image.tags)}: {image.size / 1e9:.2f} GB, built in {seconds:.1f} s{baked}")


@cli.command("images")
@json_option
def images_command(as_json: bool) -> None:
    """List the trainer's images, and whether each is what this checkout would build."""
    from launcher.cli import tables
    from launcher.engines.docker import client as containers
    from launcher.engines.docker import images

    with refusals():
        found = images.listed(containers.connect())
    if as_json:
        click.echo(json.dumps([vars(image) for image in found], indent=2))
    elif found:
        _print(tables.image_table(found))
        for warning in filter(None, (images.stale_warning(image) for image in found if image.tags)):
            click.echo(warning)
    else:
        click.echo("there is no image of the trainer; make one: launcher build cpu (or cuda)")


@cli.command("prune")
@on_host()
@click.option("--yes", is_flag=True, help="Free it without asking.")
@json_option
@runs_option
def prune_command(yes: bool, as_json: bool, runs_root: Path) -> int:
    """Free what is never missed: finished runs' last.ckpt, what killed submits left half made, leftover containers,
    replaced images. Shows it first.

    All containers and images of the project on the Docker engine are looked at, also those of other checkouts and runs
    folders. Best checkpoints, metrics, logs and predictions stay, and so does what `launcher resume` needs.
    """
    from launcher.cli import tables
    from launcher.results import prune

    with refusals():
        found, remarks = prune.find_waste(runs_root)
    if as_json:
        listed = [{"what": w.what, "bytes": w.size, "why": w.why} for w in found]
        click.echo(json.dumps({"found": listed, "remarks": remarks}, indent=2, ensure_ascii=False))
    else:
        _print(tables.waste_table(found)) if found else click.echo("nothing to free")
        for remark in remarks:
            click.echo(f"note: {remark}")
    if not found:
        return 0
    if not yes:
        if as_json or not sys.stdin.isatty():
            None if as_json else click.echo("nothing was freed; say it with --yes")
            return 0
        if not click.confirm("free all of this?", default=False):
            return 0
    failed = prune.free_all(found)
    for line in failed:
        click.echo(f"not freed: {line}", err=True)
    if not as_json:
        click.echo(f"freed: {len(found) - len(failed)} of {len(found)}")
    return 1 if failed else 0
