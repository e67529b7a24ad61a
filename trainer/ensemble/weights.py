"""How much each member of an ensemble counts: chosen on validation images, and guarded against chance.

Few images and many members let weights be found that fit nothing but these images. So the search is pulled towards
equal weights, its result is measured by cross-validation (weights found without an image vote on it), and equal weights
stay unless that honest measure is at least as good as theirs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.base.errors import ConfigError
from trainer.base.figures import F1, Column
from trainer.ensemble import voting

SEARCHES = ("optimised", "greedy")
FOLDS = 10
"""Of the cross-validation."""
PULL = 0.02
"""Macro F1 by which one member alone must be better than all with equal weights to be chosen over them; less for
weights that are nearer to equal."""
TIE = 1e-3
"""Worth of a nat of log-loss in macro F1: less than one image, so that it decides between equals."""
STEPS = (0.2, 0.1, 0.05, 0.02)
"""Shares of the vote that the search moves from one member to another, the largest first."""
ROUNDS = 30
"""Members that the greedy search takes."""

Ballots = NDArray[np.float64]
"""(members, images, classes)."""
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Vote:
    """Ballots on the same images, of the clean and, where there are, of the corrupted copies; targets (images,)."""

    clean: torch.Tensor
    corrupted: torch.Tensor | None
    targets: torch.Tensor

    def counted(self, weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The ensemble's probabilities (images, classes) of both copies."""
        worse = None if self.corrupted is None else voting.count(self.corrupted, weights)
        return voting.count(self.clean, weights), worse


@dataclass(frozen=True)
class Chosen:
    """Weights, one a member; and what ensembles whose weights were chosen without an image say of it: probabilities
    (images, classes) of the clean and the corrupted copies."""

    weights: list[float]
    held_out: tuple[torch.Tensor, torch.Tensor | None]


def choose(how: str, vote: Vote, monitored: Column, seed: int = 0) -> Chosen:
    """The weights that the search called `how` (optimised or greedy) finds, of the sum 1, for the best macro F1 of the
    copies that the figure `monitored` is of, and its honest votes: each image's with weights found on the other nine
    tenths."""
    search = {"optimised": optimised, "greedy": greedy}[how]
    copies, targets = _copies(vote, monitored), vote.targets.numpy()
    clean = torch.zeros(vote.clean.shape[1:])
    corrupted = None if vote.corrupted is None else torch.zeros(vote.corrupted.shape[1:])
    for train, held in _folds(targets, seed):
        found = list(search([copy[:, train] for copy in copies], targets[train]))
        clean[held] = voting.count(vote.clean[:, held], found)
        if vote.corrupted is not None and corrupted is not None:
            corrupted[held] = voting.count(vote.corrupted[:, held], found)
    return Chosen([round(float(w), 4) for w in search(copies, targets)], (clean, corrupted))


def _copies(vote: Vote, monitored: Column) -> list[Ballots]:
    if vote.corrupted is None:
        return [vote.clean.numpy()]
    both = {"clean": vote.clean, "corrupted": vote.corrupted}
    return [both[copy].numpy() for copy in monitored.parts]


def _folds(targets: NDArray[np.int64], seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import StratifiedKFold

    count = min(FOLDS, max(Counter(targets.tolist()).values()))
    if count < 2:
        raise ConfigError(
            f"--weights: {len(targets)} validation images of as many classes are too few to choose weights on; "
            "say --weights equal"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of fewer images than folds is in fewer of them
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(targets, targets))


def objective(copies: Sequence[Ballots], targets: NDArray[np.int64], weights: Weights) -> float:
    """Macro F1 of the vote, the mean over the copies; of equals the one with the lower log-loss is better."""
    return _worth([np.tensordot(weights, copy, 1) for copy in copies], targets)


def _worth(counted: Sequence[NDArray[np.float64]], targets: NDArray[np.int64]) -> float:
    total = 0.0
    for joined in counted:
        own = joined[np.arange(len(targets)), targets] / joined.sum(1)
        loss = -np.log(np.maximum(own, 1e-12)).mean()
        total += F1.of_labels(targets, joined.argmax(1), joined.shape[1]) - TIE * loss
    return total / len(counted)


def optimised(copies: Sequence[Ballots], targets: NDArray[np.int64]) -> Weights:
    """Weights (members,) of the sum 1 that maximise `objective` minus the pull towards equal weights, which grows with
    the square of the distance from them. By shares of the vote that move between two members while it helps, from equal
    weights on: F1 is a step function, so that gradients say nothing."""
    members = len(copies[0])
    weights = np.full(members, 1 / members)
    best = _pulled(copies, targets, weights)
    for step in STEPS:
        while True:
            moves = [_moved(weights, i, j, step) for i in range(members) for j in range(members) if i != j]
            values = [_pulled(copies, targets, moved) if moved is not None else -np.inf for moved in moves]
            place = int(np.argmax(values)) if values else 0
            if not values or values[place] <= best + 1e-9:
                break
            best, found = values[place], moves[place]
            assert found is not None
            weights = found
    return weights


def _moved(weights: Weights, giver: int, taker: int, step: float) -> Weights | None:
    share = min(step, weights[giver])
    if share <= 0:
        return None
    moved = weights.copy()
    moved[giver] -= share
    moved[taker] += share
    return moved


def _pulled(copies: Sequence[Ballots], targets: NDArray[np.int64], weights: Weights) -> float:
    members = len(weights)
    farthest = 1 - 1 / members  # the square of the distance of one member alone
    distance = ((weights - 1 / members) ** 2).sum() / farthest if members > 1 else 0.0
    return objective(copies, targets, weights) - PULL * float(distance)


def greedy(copies: Sequence[Ballots], targets: NDArray[np.int64]) -> Weights:
    """Ensemble selection with replacement (Caruana et al. 2004, sec. 2): the member that helps most is added, time and
    again; a member's weight is the share of times that it was taken, up to the round with the best `objective`."""
    members = len(copies[0])
    taken = np.zeros(members)
    best, kept = -np.inf, taken
    for _ in range(ROUNDS):
        trials = [objective(copies, targets, taken + np.eye(members)[member]) for member in range(members)]
        taken = taken + np.eye(members)[int(np.argmax(trials))]
        if max(trials) > best + 1e-9:
            best, kept = max(trials), taken
    return np.asarray(kept / kept.sum())
