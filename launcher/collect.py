"""What a submission brought: the leaderboard, and the best model so far in `champion/`."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import runs
from launcher.sizes import show_duration
from launcher.steps import figures
from trainer.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "rank",
    "run",
    "kind",
    "state",
    "model",
    "data",
    "training",
    "img_size",
    "batch_size",
    "seed",
    "val_f1",
    "val_accuracy",
    "best_epoch",
    "epochs",
    "minutes",
    "images_per_second",
    "params",
    "members",
    "checkpoint",
    "reason",
)
FIGURES = ("val_f1", "val_accuracy", "best_epoch", "epochs", "images_per_second", "params")
Row = dict[str, Any]


def rows(submission: Path) -> list[Row]:
    """A row for each training run and ensemble: those with a validation F1 first, the best on top, then the others."""
    found = []
    for run_dir in runs.list_runs(submission):
        request, status, metrics = runs.read_request(run_dir), runs.read_status(run_dir), figures(run_dir)
        if request.kind not in ("train", "ensemble"):
            continue
        done = status.state in runs.GOOD
        row: Row = {key: request.config.get(key, "") for key in COLUMNS}
        if done:
            row |= {key: metrics[key] for key in FIGURES if metrics.get(key) is not None}
        row |= {"run": run_dir.name, "kind": request.kind, "state": status.state, "reason": status.reason}
        if done and request.kind == "train":
            row["minutes"] = round(metrics.get("seconds", 0) / 60, 2)
            row["checkpoint"] = f"{run_dir.name}/best.ckpt"
        if done and request.kind == "ensemble":
            row["members"] = " ".join(Path(m["checkpoint"]).parent.name for m in metrics.get("members", []))
            row["checkpoint"] = f"{run_dir.name}/ensemble.json"
            row["model"], row["reason"] = metrics.get("method", ""), metrics.get("why_no_val") or ""
        found.append(row)
    found.sort(key=lambda row: (row["val_f1"] == "", -float(row["val_f1"] or 0), row["run"]))
    for rank, row in enumerate(found, start=1):
        row["rank"] = rank if row["val_f1"] != "" else ""
    return found


def collect(submission: Path, champion: Path | None = None, replace: bool = False) -> tuple[list[Row], str]:
    """Write leaderboard.csv, and the best run's checkpoint into `champion` (by default `<runs>/champion`) where it
    beats the one there. Returns the rows and a line on the champion.

    `replace` puts it there also where the two were validated on different splits, and so cannot be compared.
    """
    found = rows(submission)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(submission / "leaderboard.csv", out.getvalue())
    best = next((row for row in found if row["kind"] == "train" and row["val_f1"] != ""), None)
    place = champion or submission.parent / "champion"
    if best is None:
        present = _present(place)
        stays = f"the champion stays {present['run']} (val_f1 {present['val_f1']:.4f})" if present else ""
        return found, f"no run of this submission has a validation F1; {stays or 'there is no champion yet'}"
    return found, _crown(submission, best, place, replace)


def _present(champion: Path) -> dict[str, Any] | None:
    """What is known of the model in the folder; None where there is none."""
    try:
        content = json.loads((champion / "champion_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if (champion / "best_model.ckpt").exists() else None


def _crown(submission: Path, best: Row, champion: Path, replace: bool) -> str:
    source = submission / best["checkpoint"]
    metrics = figures(source.parent)
    champion.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60
    while True:
        with runs.locked(champion / ".lock") as mine:
            if mine:
                return _replace(submission, best, source, metrics, champion, replace)
        if time.monotonic() > deadline:
            return f"{champion} is locked by another collect: no champion this time"
        time.sleep(0.1)


def _replace(submission: Path, best: Row, source: Path, metrics: dict[str, Any], champion: Path, replace: bool) -> str:
    place = champion / "best_model.ckpt"
    present = _present(champion)
    name = f"{submission.name}/{best['run']}"
    if present and present.get("run") != name:
        if present.get("split_fingerprint") != metrics.get("split_fingerprint") and not replace:
            return (
                f"champion stays {present['run']} (val_f1 {present['val_f1']:.4f}): it was validated on another split, "
                f"so that {name} cannot be compared with it; to put it there all the same: "
                f"launcher collect {submission.name} --replace"
            )
        if present.get("split_fingerprint") == metrics.get("split_fingerprint") and present["val_f1"] >= best["val_f1"]:
            return f"champion stays {present['run']} (val_f1 {present['val_f1']:.4f})"
    with replacing(place) as temporary:
        shutil.copyfile(source, temporary)
    keep = (
        "val_f1",
        "val_accuracy",
        "split_fingerprint",
        "model",
        "data",
        "training",
        "img_size",
        "seed",
        "class_names",
    )
    write_json(
        champion / "champion_info.json",
        {
            "run": name,
            "collected": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **{k: metrics[k] for k in keep if k in metrics},
        },
    )
    return f"champion: {name} (val_f1 {best['val_f1']:.4f}) → {place}"


def render(found: Sequence[Row]) -> Table:
    """The leaderboard for a terminal."""
    from rich.table import Table

    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("#", "right"),
        ("run", "left"),
        ("model", "left"),
        ("size", "right"),
        ("val F1", "right"),
        ("accuracy", "right"),
        ("epochs", "right"),
        ("time", "right"),
        ("state", "left"),
    ):
        table.add_column(title, justify=justify, overflow="fold" if title == "run" else "ellipsis")  # type: ignore[arg-type]
    for row in found:
        members = f"{row['model']} of {len(row['members'].split())}" if row["members"] else str(row["model"])
        seconds = float(row["minutes"]) * 60 if row["minutes"] != "" else None
        table.add_row(
            str(row["rank"]),
            row["run"],
            members,
            str(row["img_size"]),
            _four(row["val_f1"]),
            _four(row["val_accuracy"]),
            f"{row['best_epoch']}/{row['epochs']}" if row["best_epoch"] != "" else "",
            show_duration(seconds) if seconds is not None else "",
            row["state"] + (f": {row['reason']}" if row["reason"] else ""),
        )
    return table


def _four(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def places(submission: Path) -> list[tuple[str, str]]:
    """Where everything lies: what it is, and its path."""
    found = [("leaderboard", submission / "leaderboard.csv"), ("runs", submission)]
    for run_dir in runs.list_runs(submission):
        request = runs.read_request(run_dir)
        if runs.read_status(run_dir).state in runs.GOOD and request.kind != "train":
            names = ("ensemble.json", "submission.csv", "analysis_results/report.html")
            kept = [run_dir / name for name in names if (run_dir / name).exists()]
            found += [(request.kind, path) for path in kept]
    champion = submission.parent / "champion" / "best_model.ckpt"
    found += [("champion", champion)] if champion.exists() else []
    return [(what, os.path.relpath(path)) for what, path in found]
