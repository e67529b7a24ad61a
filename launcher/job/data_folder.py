"""Finds the data folder of a submission's runs, and checks it before anything is created."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.base.errors import DataFolderError
from launcher.job.expansion import Planned
from trainer.base import layout
from trainer.base.errors import DataError


def find_data(option: str | None, planned: Sequence[Planned]) -> str | None:
    """The data folder of the runs: --data, $DATA_DIR or ./data. If every run names its own: the one of the steps, which
    is also the runs' if they name the same; None if there is no step.

    Raises DataFolderError for each folder that is missing, or has nothing to train on.
    """
    shared = option or os.environ.get("DATA_DIR") or "data"
    of_shared = "--data" if option else "DATA_DIR" if os.environ.get("DATA_DIR") else "the default"
    trained = [run.request.config for run in planned if run.request.kind == "train"]
    wanted: dict[tuple[str, str], set[str]] = {}
    for config in trained:
        folder = (config["root"], "data.root") if config.get("root") else (shared, of_shared)
        wanted.setdefault(folder, set()).add(config["format"])
    steps = [run.request for run in planned if run.request.kind != "train"]
    if not trained or (steps and of_shared != "the default"):  # the steps' own
        wanted.setdefault((shared, of_shared), set())
    errors = [
        f"{name}: the data folder ({source}) {why}; give one with --data DIR or DATA_DIR, "
        f"or create sample data: python -m trainer sample-data {name if why == 'does not exist' else 'DIR'}"
        for (name, source), formats in sorted(wanted.items())
        if (why := _why_no_data(Path(name).expanduser(), formats))
    ]
    if errors:
        raise DataFolderError("\n".join(errors))
    if (shared, of_shared) in wanted:
        return str(Path(shared).expanduser().resolve())
    predicting = next((step for step in steps if step.kind == "predict"), None)
    if predicting and len(wanted) > 1:
        folders = ", ".join(sorted(name for name, _ in wanted))
        raise DataFolderError(
            f"{predicting.name}: which test images? The runs have several data folders ({folders}); give the folder of "
            "the test images with --data DIR"
        )
    return str(Path(next(iter(wanted))[0]).expanduser().resolve()) if steps and len(wanted) == 1 else None


def _why_no_data(folder: Path, formats: set[str]) -> str | None:
    """Why runs of these values of `data.format` cannot train on the folder, judged by its top level with the trainer's
    own rules; None: they can. The trainer then opens every image."""
    try:
        if not folder.is_dir():
            return "is not a folder" if folder.exists() else "does not exist"
        parts = layout.find(folder)
        return next(filter(None, (layout.why_not_trainable(parts, kind) for kind in sorted(formats))), None)
    except OSError as error:
        return f"cannot be read ({error.strerror}: {error.filename})"
    except DataError as error:
        raise DataFolderError(str(error)) from None
