"""`launcher top`: current use of GPUs, cores and memory, and which run has which GPU."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from launcher.base.errors import watching
from launcher.base.sizes import show_size
from launcher.cli.options import json_option, print_json, print_table

if TYPE_CHECKING:
    from rich.console import Group

    from launcher.host.machine import Machine
    from launcher.host.nvml import GpuUse


@click.command(short_help="Show GPUs, cores and memory, and their runs")
@click.option("--once", is_flag=True, help="Print once and exit.")
@json_option
def top(once: bool, as_json: bool) -> None:
    """Show the use of GPUs (and by which runs), cores and memory. Ctrl-C ends it."""
    from launcher.cli import live

    with watching():
        if as_json:
            print_json(look())
        elif once or not sys.stdout.isatty():
            print_table(render(look()))
        else:
            live.repeat(lambda: (render(look()), False))


def look(interval: float | None = 0.2) -> dict[str, Any]:
    """The stable form of `top --json`. `interval`: seconds over which to measure the cores; None: since the last
    call."""
    import psutil

    from launcher.host.machine import here

    machine = here()
    memory = psutil.virtual_memory()
    return {
        "machine": machine.name,
        "cpu": {"cores": machine.cpus, "use_percent": psutil.cpu_percent(interval=interval)},
        "memory": {
            "used_bytes": int(memory.total - memory.available),
            "total_bytes": int(memory.total),
            "limit_bytes": machine.memory if machine.memory < memory.total else None,
            "unified": machine.mps,
        },
        "gpus": _gpus(machine),
    }


def _gpus(machine: Machine) -> list[dict[str, Any]]:
    from launcher.host import usage
    from launcher.host.nvml import GpuUse

    if machine.mps:
        # Cores and GPU share one memory, and only root can read the GPU's own figures.
        name = f"{platform.processor() or 'Apple'} GPU (MPS)"
        return [_plain(GpuUse(0, name, "", None, None, None, None, usage.lock_holder("mps")), "mps")]
    return [_plain(use, use.label) for use in usage.gpu_uses()]


def _plain(use: GpuUse, device: str) -> dict[str, Any]:
    return {
        "device": device,
        "name": use.name,
        "use_percent": use.use_percent,
        "memory_used_bytes": use.memory_used,
        "memory_total_bytes": use.memory_total,
        "temperature_celsius": use.temperature,
        "run": use.run,
    }


def render(seen: dict[str, Any]) -> Group:
    """The figures of `look` for a terminal."""
    from rich.console import Group
    from rich.table import Table

    memory = seen["memory"]
    kind = "unified memory" if memory["unified"] else "memory"
    limit = f" (this process may have {show_size(memory['limit_bytes'])})" if memory["limit_bytes"] else ""
    lines = [
        f"{seen['machine']}",
        f"cores   {seen['cpu']['use_percent']:.0f} % of {seen['cpu']['cores']:g}",
        f"{kind}  {show_size(memory['used_bytes'])} of {show_size(memory['total_bytes'])}{limit}",
    ]
    if not seen["gpus"]:
        return Group(*lines, "no GPU")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("GPU", "name", "use", "memory", "°C", "run"):
        table.add_column(title, overflow="fold")
    for gpu in seen["gpus"]:
        known = gpu["memory_used_bytes"] is not None
        table.add_row(
            gpu["device"],
            gpu["name"],
            "–" if gpu["use_percent"] is None else f"{gpu['use_percent']} %",
            f"{show_size(gpu['memory_used_bytes'])} of {show_size(gpu['memory_total_bytes'])}" if known else "–",
            "–" if gpu["temperature_celsius"] is None else str(gpu["temperature_celsius"]),
            gpu["run"] or "free",
        )
    return Group(*lines, table)
