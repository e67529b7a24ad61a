"""Weights & Biases: on if there is a key or WANDB_MODE. An error in W&B never ends a run.

All attempts of a run are one run of W&B: its id is kept in the run's folder.
"""

from __future__ import annotations

import os
import re
import secrets
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.base.brief import in_brief
from trainer.base.files import write_text

INIT_TIMEOUT = 20
"""Seconds to wait for W&B's server at the start of a run."""


class Tracking:
    """Sends metrics to W&B if it is on. After its first error it prints the error and sends nothing more."""

    def __init__(self, config: dict[str, Any], run_dir: Path, active: bool = True) -> None:
        """`active` is True only in the first process. Other processes send nothing."""
        self._wandb_run: Any = None
        mode = choose_mode()
        if mode == "disabled" or not active:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import wandb

                self._wandb_run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT") or "document-classifier",
                    entity=os.environ.get("WANDB_ENTITY") or None,
                    name=os.environ.get("WANDB_NAME") or run_dir.name,
                    dir=run_dir,
                    config=config,
                    mode="offline" if mode == "offline" else "online",
                    id=_run_id(run_dir),
                    resume="allow",
                    allow_val_change=True,
                    settings=wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off"),
                )
        except Exception as error:  # W&B and its network raise many kinds of errors
            self._give_up(error)

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Send the metrics of one validation."""
        self._try(lambda: self._wandb_run.log(figures, step=step))

    def finish(self, figures: dict[str, Any], exit_code: int = 0) -> None:
        """Send the final metrics and end the connection."""
        self._try(lambda: (self._wandb_run.summary.update(figures), self._wandb_run.finish(exit_code=exit_code)))
        self._wandb_run = None

    def _try(self, action: Any) -> None:
        if self._wandb_run is None:
            return
        try:
            action()
        except Exception as error:  # as above
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._wandb_run = None
        reason = in_brief(str(error), 200)
        print(f"note: W&B is off for this run: {reason} (to avoid this: WANDB_MODE=disabled or offline)")


ID_FILE = "wandb_id.txt"
"""The file with the id of W&B's run, in the run's folder."""


def _run_id(run_dir: Path) -> str:
    """The id of this run at W&B: $WANDB_RUN_ID, that of an earlier attempt, or a new one."""
    named = os.environ.get("WANDB_RUN_ID")
    if named:
        return named
    with suppress(OSError, UnicodeDecodeError):
        stored = (run_dir / ID_FILE).read_text(encoding="utf-8").strip()
        if re.fullmatch(r"[\w-]{1,64}", stored, re.ASCII):
            return stored
    new = secrets.token_hex(4)
    write_text(run_dir / ID_FILE, new + "\n")
    return new


def choose_mode() -> str:
    """online, offline or disabled: WANDB_MODE if set, else online if there is a key, else disabled."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("offline", "dryrun"):
        return "offline"
    if mode in ("disabled", "off"):
        return "disabled"
    return "online" if os.environ.get("WANDB_API_KEY") or mode == "online" else "disabled"
