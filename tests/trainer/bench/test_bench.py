"""The bench: what it prints and writes. Its figures are for people; no test looks at them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.base import cores
from trainer.bench import bench, loading
from trainer.cli.main import main


def test_the_loader_s_half_of_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "SOURCES", {"jpeg": (60, 80, 3), "scan": (900, 1200, 2)})
    monkeypatch.setattr(loading, "PASSES", 1)
    monkeypatch.delenv("CACHE_DIR", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert main(["bench", "--quick", "--only", "loader", "--json", str(tmp_path / "made.json")]) == 0
    assert torch.get_num_threads() == 2, "what loads has one thread; training, which is measured next, has all"
    torch.set_num_threads(before)
    made = json.loads((tmp_path / "made.json").read_text())
    places = [(row["source"], row["size"], row["epoch"]) for row in made["loader"]]
    assert places == [(s, size, e) for s in ("jpeg", "scan") for size in (768, 384) for e in ("first", "later")]
    assert [row["step"] for row in made["gains"]][:6] == [row["step"] for row in made["gains"]][6:]
    assert [sorted(row) for row in made["scaling"]][::2] == [["images_per_s", "workers"], ["images_per_s", "runs"]]
    assert made["machine"]["cores"] == cores.available() and "train" not in made
    shown = capsys.readouterr().out
    assert "| jpeg   | 768  | first |" in shown and "at the page's own size" in shown


def test_a_place_that_cannot_be_written_is_told_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "/proc/made.json"]) == 64
    assert "/proc" in capsys.readouterr().err


def test_tables_leave_empty_what_a_row_lacks() -> None:
    assert bench._table([{"a": 1}, {"b": 22}])[2:] == ["| 1 |    |", "|   | 22 |"]


def test_ratios_are_those_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first epoch's to the reference's of the same draws."""
    monkeypatch.setattr(loading, "SOURCES", {"jpeg": (60, 80, 3)})
    took = iter([9.0] * 5 + [6.0, 2.0, 3.0, 4.0, 12.0] + [8.0, 2.0, 4.0, 4.0, 12.0] + [60.0, 20.0, 30.0, 40.0, 120.0])

    def spent(work: Callable[[], Any]) -> float:
        work()
        return next(took)

    monkeypatch.setattr(loading, "_spent", spent)
    first, later = loading._compare(loading.draw(tmp_path, "jpeg"), "jpeg", 64, tmp_path / "cache", 3)
    assert (first["ratio"], later["ratio"]) == (3.0, 4.5), "a slow round counts as any other"
    assert (first["ratio_timm"], later["ratio_timm"]) == (6.0, 12.0)
    assert (first["images_per_s"], later["images_per_s"], first["reference"]) == (1.5, 3.0, 0.5)
