"""Weights & Biases: on where a key or WANDB_MODE says so; never a reason for a run to end otherwise than without it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any


class Tracking:
    """Sends figures to W&B, or nowhere. The first failure is printed and ends the sending, not the run."""

    def __init__(self, config: dict[str, Any], run_dir: Path, active: bool = True) -> None:
        """`active` is False on every process but the first: nothing is sent from there."""
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
                    settings=wandb.Settings(init_timeout=20, silent=True, console="off"),
                )
        except Exception as error:  # whatever W&B or its network raises
            self._give_up(error)

    def log(self, figures: dict[str, Any], step: int) -> None:
        """Figures of one validation."""
        self._try(lambda: self._wandb_run.log(figures, step=step))

    def finish(self, figures: dict[str, Any], exit_code: int = 0) -> None:
        """Final figures; afterwards nothing more is sent."""
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
        reason = " ".join(str(error).split())[:200]
        print(f"note: W&B is off for this run: {reason} (WANDB_MODE=disabled or offline avoids this)")


def choose_mode() -> str:
    """online, offline or disabled: WANDB_MODE's word, else online where a key is there, else disabled."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("offline", "dryrun"):
        return "offline"
    if mode in ("disabled", "off"):
        return "disabled"
    return "online" if os.environ.get("WANDB_API_KEY") or mode == "online" else "disabled"
