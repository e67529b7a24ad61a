"""The data folder of a submission's runs: found, and looked at before anything is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.base.errors import DataFolderError
from launcher.job.expansion import Planned


def find_data(option: str | None, planned: Sequence[Planned]) -> str | None:
    """The data folder of the runs: --data, $DATA_DIR or ./data, or None where every run names its own.

    Raises DataFolderError where one is not there, or holds nothing that its runs could train on.
    """
    shared = option or os.environ.get("DATA_DIR") or "data"
    of_shared = "--data" if option else "DATA_DIR" if os.environ.get("DATA_DIR") else "the default"
    trained = [run.request.config for run in planned if run.request.kind == "train"]
    wanted: dict[tuple[str, str], set[str]] = {}
    for config in trained:
        folder = (config["root"], "data.root") if config.get("root") else (shared, of_shared)
        wanted.setdefault(folder, set()).add(config["format"])
    if not trained:  # steps alone
        wanted[(shared, of_shared)] = set()
    for (name, source), formats in sorted(wanted.items()):
        if why := _why_no_data(Path(name).expanduser(), formats):
            raise DataFolderError(
                f"{name}: the data folder ({source}) {why}; name one by --data DIR or DATA_DIR, "
                f"or draw one: python -m trainer sample-data {name if why == 'does not exist' else 'DIR'}"
            )
    return str(Path(shared).expanduser().resolve()) if (shared, of_shared) in wanted else None


def _why_no_data(folder: Path, formats: set[str]) -> str | None:
    """Why runs of these values of `data.format` cannot train on the folder, by what lies on its top; None: they can.

    The trainer judges by the same rule, and then opens every image.
    """
    try:
        if not folder.is_dir():
            return "is not a folder" if folder.exists() else "does not exist"
        has_table = (folder / "train.csv").is_file()
        base = folder / "train" if (folder / "train").is_dir() else folder
        class_folders = [path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        return f"cannot be read ({error.strerror}: {error.filename})"
    has_classes = bool(class_folders if base != folder else set(class_folders) - {"test"})
    if "csv" in formats and not has_table:
        return "holds no train.csv, which data.format=csv asks for"
    if "imagefolder" in formats and not has_classes:
        return "holds no folder a class below train/, which data.format=imagefolder asks for"
    if "auto" in formats and not has_table and not has_classes:
        return "holds neither train.csv nor a folder a class below train/"
    return None
