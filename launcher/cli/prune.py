"""`launcher prune` frees disk space; `launcher cache` lists and removes decoded images that runs share."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.base.sizes import show_size
from launcher.cli.options import echo, json_option, print_json, print_table, runs_option
from launcher.remote.host_option import on_host
from trainer.base.plural import counted

if TYPE_CHECKING:
    from rich.table import Table

    from launcher.engines.base import Waste
    from trainer.images.cache_folder import Cache

DAY = 86_400


@click.group("cache", short_help="List or remove decoded images")
def cache_group() -> None:
    """Decoded images that runs share, in $CACHE_DIR (default: .cache in the runs folder)."""


@cache_group.command("ls")
@json_option
@runs_option
def cache_ls(as_json: bool, runs_root: Path) -> None:
    """List the caches: data folder, image size, disk space, last use."""
    caches = _found(runs_root)
    if as_json:
        print_json([_plain(cache) for cache in caches])
    elif caches:
        print_table(cache_table(caches))
    else:
        click.echo(f"{_folder(runs_root)}: no decoded images")


@cache_group.command("prune")
@click.option(
    "--days", type=click.FloatRange(min=0), default=30, show_default=True, help="Remove caches unused for so many days."
)
@click.option("--all", "everything", is_flag=True, help="Remove all caches that no run is reading.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
@runs_option
def cache_prune(days: float, everything: bool, yes: bool, as_json: bool, runs_root: Path) -> int:
    """Remove decoded images that were not used for a long time. Lists them first, and keeps those that a run is
    reading.

    Nothing is lost: the next run decodes them again.
    """
    from trainer.images import cache_folder

    old = time.time() - days * DAY
    caches = [cache for cache in _found(runs_root) if not cache.in_use and (everything or cache.used <= old)]
    if as_json:
        print_json([_plain(cache) for cache in caches])
    elif caches:
        print_table(cache_table(caches))
    else:
        click.echo(
            "nothing to remove"
            + ("" if everything else f": all were used in the last {counted(days, 'day')} (--all removes them too)")
        )
    if not caches:
        return 0
    if not yes:
        if as_json or not sys.stdin.isatty():
            None if as_json else click.echo("nothing was removed; to remove without a question: --yes")
            return 0
        if not click.confirm("remove these?", default=False):
            return 0
    in_use = [cache.folder.name for cache in caches if not cache_folder.evict(cache.folder)]
    cache_folder.sweep(_folder(runs_root))
    for name in in_use:
        click.echo(f"not removed: {name}: a run reads it, or it belongs to another user", err=True)
    if not as_json:
        click.echo(f"removed: {len(caches) - len(in_use)} of {len(caches)}")
    return 1 if in_use else 0


def _folder(runs_root: Path) -> Path:
    from launcher.record.find import cache_dir

    return cache_dir(runs_root) / "decoded"


def _found(runs_root: Path) -> list[Any]:
    from trainer.images import cache_folder

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


@click.command("prune", short_help="Delete files that nothing needs any more")
@on_host()
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
@runs_option
def prune_command(yes: bool, as_json: bool, runs_root: Path) -> int:
    """Delete files that nothing needs any more: last.ckpt of finished runs, incomplete submissions, leftover
    containers, replaced images. Lists them first.

    On the Docker engine this includes containers and images of other checkouts and runs folders of this project. Best
    checkpoints, metrics, logs, predictions and everything that `launcher resume` needs are kept.
    """
    from launcher.results import prune

    waste, remarks = prune.find_waste(runs_root)
    if as_json:
        listed = [{"what": w.what, "bytes": w.size, "why": w.why} for w in waste]
        print_json({"found": listed, "remarks": remarks})
    else:
        print_table(waste_table(waste)) if waste else click.echo("nothing to free")
        for remark in remarks:
            echo(f"note: {remark}")
    if not waste:
        return 0
    if not yes:
        if as_json or not sys.stdin.isatty():
            None if as_json else click.echo("nothing was freed; to free without a question: --yes")
            return 0
        if not click.confirm("free all of this?", default=False):
            return 0
    failed = prune.free_all(waste)
    for line in failed:
        click.echo(f"not freed: {line}", err=True)
    if not as_json:
        click.echo(f"freed: {len(waste) - len(failed)} of {len(waste)}")
    return 1 if failed else 0


def cache_table(caches: Sequence[Cache]) -> Table:
    """Decoded images as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column("cache", "all of them", overflow="fold")
    table.add_column("images of", overflow="fold")
    table.add_column("decoded", justify="right")
    table.add_column("on disk", show_size(sum(cache.size for cache in caches)), justify="right")
    table.add_column("last used (UTC)")
    for cache in caches:
        about = cache.about
        images, kept = about.get("images", "?"), about.get("kept", "?")
        part = f"{cache.decoded} of {images}" + ("" if kept == images else f", {kept} fit")
        used = time.strftime("%Y-%m-%d %H:%M", time.gmtime(cache.used)) if cache.used else "unknown"
        table.add_row(
            cache.folder.name, str(about.get("folder") or "damaged"), part, show_size(cache.size),
            used + (", in use" if cache.in_use else ""),
        )  # fmt: skip
    return table


def waste_table(waste: Sequence[Waste]) -> Table:
    """The table of files that `prune` would delete."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column("what", "all of it", overflow="fold")
    table.add_column("size", show_size(sum(item.size for item in waste)), justify="right")
    table.add_column("why", overflow="fold")
    for item in waste:
        table.add_row(item.what, show_size(item.size) if item.size else "", item.why)
    return table
