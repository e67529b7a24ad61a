"""`champion/`: the best single model so far, of all submissions with the same validation split."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from launcher.record.locks import locked
from launcher.record.standings import Figures, read_metrics
from trainer.base.figures import MAIN, columns
from trainer.base.files import replacing, write_json

Row = dict[str, Any]
KEPT = (
    "split_fingerprint",
    "model",
    "data",
    "training",
    "img_size",
    "seed",
    "class_names",
)


NO_CHAMPION = (
    "No champion yet. The best single training run (no fold, no ensemble) becomes champion when its submission ends "
    "(or run: launcher collect)."
)


def crown(submission: Path, best: Row | None, champion: Path, replace: bool, why_none: str) -> str:
    """Put the checkpoint of `best`, a row of the leaderboard, into `champion` if it beats the present champion. Returns
    a line with the result. `why_none`: why there is no such row."""
    if best is None:
        present = _present(champion)
        return f"{why_none}; {_stays(present)}" if present else f"{why_none}. {NO_CHAMPION}"
    champion.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60
    while True:
        with locked(champion / ".lock") as mine:
            if mine:
                return _replace(submission, best, champion, replace)
        if time.monotonic() > deadline:
            return f"{champion}: locked by another collect; not updated; later: launcher collect {submission.name}"
        time.sleep(0.1)


def _present(champion: Path) -> Figures | None:
    """Figures of the model in the folder; None if there is none."""
    try:
        content = json.loads((champion / "champion_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if (champion / "best_model.ckpt").exists() else None


def _stays(present: Figures, figure: str = MAIN) -> str:
    return f"the champion stays {present['run']} ({figure} {present[figure]:.4f})"


def _replace(submission: Path, best: Row, champion: Path, replace: bool) -> str:
    source = submission / best["checkpoint"]
    metrics = read_metrics(source.parent)
    place = champion / "best_model.ckpt"
    present = _present(champion)
    name = f"{submission.name}/{best['run']}"
    figure = best["monitor"]
    if present and present.get("run") != name:
        figure = figure if figure in present and figure in metrics else MAIN
        same_split = present.get("split_fingerprint") == metrics.get("split_fingerprint")
        if not same_split and not replace:
            return (
                f"{_stays(present, figure)}: it was validated on another split, "
                f"so {name} cannot be compared with it; to replace it anyway: "
                f"launcher collect {submission.name} --replace"
            )
        worth = columns()[figure].worth
        if same_split and worth(present[figure]) >= worth(metrics[figure]):
            return _stays(present, figure)
    with replacing(place) as temporary:
        shutil.copyfile(source, temporary)
    write_json(
        champion / "champion_info.json",
        {
            "run": name,
            "collected": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **{key: metrics[key] for key in (*columns(), *KEPT) if key in metrics},
            "score": best["score"],
            "monitor": best["monitor"],
        },
    )
    return f"champion: {name} ({figure} {metrics[figure]:.4f}) → {place}"
