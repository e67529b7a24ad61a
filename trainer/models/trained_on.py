"""Where a model was trained: its run and its data folder."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from trainer.models import checkpoint


def data_folder(path: Path) -> Path | None:
    """The folder that the model of a best.ckpt, an ensemble.json (its first member that is there) or a
    val_predictions.npz (the model beside it) was trained on, if it is known and still there.

    Raises ConfigError if a checkpoint is damaged.
    """
    file = _checkpoint_of(path)
    if file is None:
        return None
    named = (checkpoint.load(file, mapped=True).provenance | champion(file)).get("data_folder")
    with suppress(OSError, ValueError):
        if named and Path(named).is_dir():
            return Path(named)
    return None


def champion(path: Path) -> dict[str, str]:
    """The run and the data folder of a champion, from the launcher's champion_info.json beside the checkpoint."""
    if path.name != "best_model.ckpt":
        return {}
    try:
        content = json.loads((path.parent / "champion_info.json").read_text(encoding="utf-8"))
        return {key: content[key] for key in ("run", "data_folder") if isinstance(content.get(key), str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _checkpoint_of(path: Path) -> Path | None:
    """The checkpoint whose training counts for the file `path`."""
    if path.suffix == ".npz":
        beside = (path.parent / name for name in ("best.ckpt", "ensemble.json"))
        path = next((file for file in beside if file.is_file()), path)
    if path.suffix == ".json":
        try:
            members = json.loads(path.read_text(encoding="utf-8"))["members"]
            files = [path.parent / member["checkpoint"] for member in members]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return next((file for file in files if file.is_file()), None)
    return None if path.suffix == ".npz" else path
