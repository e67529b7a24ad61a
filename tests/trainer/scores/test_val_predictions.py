"""The file of validation predictions holds what the checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.scores import val_predictions


@pytest.mark.parametrize("complete", [True, False])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, complete: bool) -> None:
    clean, corrupted = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]])
    more = (corrupted, "split", "folds") if complete else (None, "split", None)
    arrays = val_predictions.arrays(["a.jpg", "b.jpg"], torch.tensor([0, 1]), clean, *more)
    val_predictions.write(tmp_path / "val_predictions.npz", arrays, ["letter", "form"])
    validation = val_predictions.read(tmp_path / "val_predictions.npz")
    assert (validation.ids, validation.class_names) == (["a.jpg", "b.jpg"], ["letter", "form"])
    assert (validation.targets.tolist(), validation.targets.dtype) == ([0, 1], np.int64)
    assert (validation.split_fingerprint, validation.folds_fingerprint) == (more[1], more[2])
    copies = {"clean": clean.numpy(), "corrupted": corrupted.numpy()} if complete else {"clean": clean.numpy()}
    assert validation.copies.keys() == copies.keys()
    assert all(np.array_equal(validation.copies[copy], copies[copy]) for copy in copies)
