"""How well ensembles do on images that their weights were not chosen on: equal weights against the greedy search.

    python -m tests.compare_weights RUN_DIR… [--repeats 200] [--test-labels FILE] [--seed 0]

Each RUN_DIR holds val_predictions.npz (all of one split) and, for `--test-labels`, test/predictions.npz. It replays many
selections: some of the members, and two thirds of the validation images to choose weights on. The weights are scored on
the third that is left, and on the test images. Prints JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base import figures
from trainer.base.figures import F1
from trainer.ensemble import voting

Ballots = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--test-labels", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(compare(options.runs, options.repeats, options.test_labels, options.seed), indent=1))


def compare(runs: Sequence[Path], repeats: int, labels: Path | None, seed: int) -> dict[str, Any]:
    stored = [dict(np.load(run / "val_predictions.npz", allow_pickle=False)) for run in runs]
    assert len({str(one["split_fingerprint"]) for one in stored}) == 1, "the runs have different validation images"
    copies = [np.stack([one[key].astype(float) for one in stored]) for key in ("probabilities", "corrupted")]
    targets = stored[0]["targets"]
    test = _test(runs, labels) if labels else None
    searches: dict[str, Callable[[Sequence[Ballots], NDArray[np.int64]], Any]] = {
        "equal": lambda ballots, _: np.full(len(ballots[0]), 1 / len(ballots[0])),
        "greedy": voting.greedy,
    }
    generator = np.random.default_rng(seed)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in searches}
    for _ in range(repeats):
        members = np.sort(generator.choice(len(runs), int(generator.integers(2, len(runs) + 1)), replace=False))
        drawn, rest = np.split(generator.permutation(len(targets)), [len(targets) * 2 // 3])
        for name, search in searches.items():
            chosen = search([copy[members][:, drawn] for copy in copies], targets[drawn])
            scores = {
                "seen": _score(copies, members, drawn, targets, chosen),
                "unseen": _score(copies, members, rest, targets, chosen),
            }
            if test is not None:
                scores["test"] = _score([test[0]], members, np.arange(len(test[1])), test[1], chosen)
            if name != "equal":
                vote = voting.Vote(
                    *(torch.from_numpy(copy[members][:, drawn]) for copy in copies), torch.from_numpy(targets[drawn])
                )
                held = voting.search(vote, figures.columns()["val_f1_mean"]).held_out
                scores["cross_validated"] = float(
                    np.mean([_f1(part.numpy(), targets[drawn]) for part in held if part is not None])
                )
            for key, value in scores.items():
                rows[name].setdefault(key, []).append(value)
    means = {
        name: {key: round(float(np.mean(values)), 4) for key, values in figures.items()}
        for name, figures in rows.items()
    }
    return {
        "members": [run.name for run in runs],
        "validation_images": len(targets),
        "test_images": len(test[1]) if test else None,
        "selections": repeats,
        "mean_macro_f1": means,
        "difference": {
            f"{first} - {second}": {
                key: _difference(rows[first][key], rows[second][key]) for key in rows[first] if key in rows[second]
            }
            for first, second in [("greedy", "equal")]
        },
    }


def _test(runs: Sequence[Path], labels: Path) -> tuple[Ballots, NDArray[np.int64]]:
    with labels.open(newline="") as rows:
        known = {row["ID"]: row["target"] for row in csv.DictReader(rows)}
    stored = [dict(np.load(run / "test" / "predictions.npz", allow_pickle=False)) for run in runs]
    places = {label: place for place, label in enumerate(stored[0]["labels"].tolist())}
    targets = np.array([places[known[image_id]] for image_id in stored[0]["ids"].tolist()])
    return np.stack([one["probabilities"].astype(float) for one in stored]), targets


def _score(copies: Sequence[Ballots], members: Any, images: Any, targets: NDArray[np.int64], chosen: Any) -> float:
    votes = [np.tensordot(chosen, copy[members][:, images], 1) for copy in copies]
    return float(np.mean([_f1(vote, targets[images]) for vote in votes]))


def _f1(vote: NDArray[Any], targets: NDArray[np.int64]) -> float:
    return float(F1.of_labels(targets, vote.argmax(1), vote.shape[1]))


def _difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Mean over the selections, and the middle 95 % of them."""
    each = np.array(first) - np.array(second)
    low, high = np.quantile(each, [0.025, 0.975])
    return {"mean": round(float(each.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


if __name__ == "__main__":
    main()
