"""Commands on the decoded images that runs share: cache ls, cache prune. Registered by `launcher.cli.main`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from launcher.base.errors import refusals
from launcher.cli.main import _print, cli, json_option, runs_option

DAY = 86_400


@cli.group("cache")
def cache_group() -> None:
    """The images that runs decoded once and share, under $CACHE_DIR (else .cache in the runs folder)."""


@cache_group.command("ls")
@json_option
@runs_option
def cache_ls(as_json: bool, runs_root: Path) -> None:
    """List them: of which data, at which size, how much is there, when last used."""
    found = _found(runs_root)
    if as_json:
        click.echo(json.dumps([_plain(cache) for cache in found], indent=2))
    elif found:
        from launcher.cli import tables

        _print(tables.cache_table(found))
    else:
        click.echo(f"{_folder(runs_root)}: there are no decoded images")


@cache_group.command("prune")
@click.option("--days", type=click.FloatRange(min=0), default=30, show_default=True, help="Those unused for so long.")
@click.option("--all", "everything", is_flag=True, help="All that no run reads now.")
@click.option("--yes", is_flag=True, help="Remove them without asking.")
@json_option
@runs_option
def cache_prune(days: float, everything: bool, yes: bool, as_json: bool, runs_root: Path) -> int:
    """Remove decoded images that were not used for long. Shows them first; what a run reads now stays.

    Nothing is lost: the next run decodes them again.
    """
    from trainer.images import cache_folder

    old = time.time() - days * DAY
    found = [cache for cache in _found(runs_root) if not cache.in_use and (everything or cache.used <= old)]
    if as_json:
        click.echo(json.dumps([_plain(cache) for cache in found], indent=2))
    elif found:
        from launcher.cli import tables

        _print(tables.cache_table(found))
    else:
        click.echo("nothing to remove" + ("" if everything else f": none was unused for {days:g} days (--all: any)"))
    if not found:
        return 0
    if not yes:
        if as_json or not sys.stdin.isatty():
            None if as_json else click.echo("nothing was removed; say it with --yes")
            return 0
        if not click.confirm("remove these?", default=False):
            return 0
    with refusals():
        kept = [cache.folder.name for cache in found if not cache_folder.evict(cache.folder)]
        cache_folder.sweep(_folder(runs_root))
    for name in kept:
        click.echo(f"not removed: {name}: a run has begun to read it", err=True)
    if not as_json:
        click.echo(f"removed: {len(found) - len(kept)} of {len(found)}")
    return 1 if kept else 0


def _folder(runs_root: Path) -> Path:
    from launcher.engines.docker.recipe import cache_dir

    return cache_dir(runs_root) / "decoded"


def _found(runs_root: Path) -> list[Any]:
    from trainer.images import cache_folder

    with refusals():
        return cache_folder.caches(_folder(runs_root))


def _plain(cache: Any) -> dict[str, Any]:
    return {
        "folder": str(cache.folder),
        "data": cache.about.get("folder"),
        "data_fingerprint": cache.about.get("data_fingerprint"),
        "size": cache.about.get("size"),
        "images": cache.about.get("images"),
        "kept": cache.about.get("kept"),
        "decoded": cache.decoded,
        "decodes": cache.decodes,
        "bytes": cache.size,
        "used": cache.used,
        "in_use": cache.in_use,
    }
