"""What a run tells while it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.training import progress
from trainer.training.progress import Reporter, validation_line


def test_a_resumed_run_tells_no_speed_before_its_first_step(tmp_path: Path) -> None:
    """Its first line may be that of a validation which was due when it was stopped."""
    reporter = Reporter(tmp_path, epochs=2, steps=20, device="cpu", active=True, steps_per_epoch=10)
    names = ("train_loss", "val_loss", "val_f1", "val_accuracy")
    entry = {"epoch": 2, "step": 10, "best": False, **dict.fromkeys(names, 0.5)}

    def told(step: int) -> tuple[dict[str, float | None], str]:
        reporter.beat(1, step, 0, force=True)
        line = validation_line(entry, 2, reporter.images_per_second, reporter.eta(step))
        return json.loads((tmp_path / "progress.json").read_text()), line

    beat, line = told(10)
    assert beat["images_per_second"] is beat["eta_seconds"] is None
    assert line.endswith("val_accuracy 0.5000  ETA unknown")
    reporter.step(1, 11, images=32, memory=0)
    beat, line = told(11)
    assert beat["images_per_second"] and beat["eta_seconds"] is not None and "images/s" in line


def test_a_log_has_a_line_after_a_minute_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress.QUIET == 60
    reporter = Reporter(tmp_path, epochs=2, steps=20, device="cpu", active=True, steps_per_epoch=10)
    reporter.step(1, 11, images=32, memory=0)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "QUIET", 0)
    reporter.beat(1, 12, 0, force=True)
    line = capsys.readouterr().out
    assert line.startswith("epoch 2/2 step 12 of 20: ") and " images/s  ETA " in line
    monkeypatch.setattr(progress, "QUIET", 60)
    reporter.beat(1, 13, 0, force=True)
    assert capsys.readouterr().out == "", "the line before is not a minute old"
