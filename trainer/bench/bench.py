"""`python -m trainer bench`: loading and training speed of this machine, as ratios to references in the same run."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.base import cores, provenance
from trainer.base.plural import counted
from trainer.bench import loading

PARTS = ("loader", "train")


def machine() -> dict[str, Any]:
    """Description of this machine."""
    return {
        "processor": _processor(),
        "cores": cores.available(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(quick: bool, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Run the benchmarks. Returns `machine`, `date`, `commit`, and a list of rows per part."""
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": provenance.revision(),
        "quick": quick,
        "machine": machine(),
    }
    if "loader" in parts:
        results["loader"] = loading.measure(quick)
        results["gains"] = loading.gains(quick)
        results["scaling"] = loading.scaling(quick)
    if "train" in parts:
        from trainer.bench import steps, training

        results["train"] = training.measure(quick)
        if torch.cuda.is_available():
            results["compile"] = training.compile_gains(quick)
        results["step"] = steps.steps(quick)
    return results


def as_text(results: dict[str, Any]) -> str:
    """Tables for a terminal and for the docs."""
    about = results["machine"]
    device = f", {about['gpu']}" if about["gpu"] else ", no GPU"
    lines = [
        f"{results['date']}, {about['processor']}, {counted(about['cores'], 'core')}{device}, torch {about['torch']}"
    ]
    lines += [f"load before it began: {about['load']}"] if about["load"] > 0.5 else []
    titles = {
        "loader": "loading: images per second and core, with the manual's augmentation",
        "gains": "time saved by each loading step, at 768 px, milliseconds per image",
        "scaling": "loading: images per second, 498 × 538 JPEGs at 768 px, later epochs",
        "train": "training: images per second",
        "compile": "time saved by torch.compile in forward and backward pass",
        "step": "time of the parts of a training step",
    }
    for part, title in titles.items():
        if part in results:
            lines += ["", f"{title}:", *_table(results[part])]
    return "\n".join(lines)


def _table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Rows as Markdown. Missing columns are empty."""
    listed = list(rows)
    columns = list(dict.fromkeys(key for row in listed for key in row))
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in listed)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(v.ljust(w) for v, w in zip(values, widths, strict=True)) + " |"

    return [line(cells[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, cells[1:])]
