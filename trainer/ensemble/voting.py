"""Join the probabilities of several members, and search the weights of the members.

With few validation images and many members a search overfits: its weights fit only these images. So cross-validation
scores the search (the weights for an image are searched without it). The search's weights are used only if this score
is at least as good as with equal weights.
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
from trainer.base.plural import counted

FOLDS = 10
"""Folds of the cross-validation."""
TIE = 1e-3
"""Weight of one nat of log-loss against macro F1. It is less than one image, so it only decides between equal F1."""
ROUNDS = 30
"""Rounds of the greedy search. Each round adds a member."""

Ballots = NDArray[np.float64]
"""(members, images, classes)."""
Weights = NDArray[np.float64]


MOST_REFERENCE = 1_000_000
"""Largest number of reference values that ranks are computed from. More are thinned out evenly."""


def ballots(
    method: str, probabilities: Sequence[torch.Tensor], references: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """The ballots of M members, (M, N, classes) float64. The ensemble is their weighted mean.

    soft_voting: the probabilities. hard_voting: one vote per image, plus a very small share of the probabilities to
    decide ties. rank_averaging: the rank of each probability among the member's `references` (its validation
    probabilities of any image and class), so that confident and cautious members count equally.
    """
    stack = torch.stack([p.double() for p in probabilities])
    if method == "hard_voting":
        return torch.nn.functional.one_hot(stack.argmax(2), stack.shape[2]).double() + 1e-6 * stack
    if method == "rank_averaging":
        return torch.stack([ranks(own, reference) for own, reference in zip(stack, references, strict=True)])
    return stack


def ranks(probabilities: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The share of the values of `reference` that are smaller, for each probability, float64. Between two values the
    share is interpolated. So a larger probability has a larger rank, whatever its class and the other images are: a
    member alone keeps its choice."""
    values = np.sort(reference.double().numpy().ravel())
    values, counts = np.unique(values[:: -(-len(values) // MOST_REFERENCE)], return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / counts.sum()
    if values[0] > 0:
        values, shares = np.insert(values, 0, 0.0), np.insert(shares, 0, 0.0)
    if values[-1] < 1:
        values, shares = np.append(values, 1.0), np.append(shares, 1.0)
    return torch.from_numpy(np.interp(probabilities.double().numpy(), values, shares))


def count(cast: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of ballots (M, N, classes) as a distribution (N, classes) float32. Weights need not sum to
    1."""
    share = torch.tensor(list(weights), dtype=torch.float64)
    joined = ((share / share.sum()).view(-1, 1, 1) * cast).sum(0)
    return (joined / joined.sum(1, keepdim=True)).float()


def combine(
    method: str,
    probabilities: Sequence[torch.Tensor],
    weights: Sequence[float],
    references: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Join the members' (N, classes) probabilities into one (N, classes) distribution. `references`: see `ballots`."""
    return count(ballots(method, probabilities, references), weights)


@dataclass(frozen=True)
class Vote:
    """Ballots on the same images, for clean and perhaps corrupted copies, and targets (images,)."""

    clean: torch.Tensor
    corrupted: torch.Tensor | None
    targets: torch.Tensor

    def counted(self, weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The ensemble's probabilities (images, classes) of both copies."""
        worse = None if self.corrupted is None else count(self.corrupted, weights)
        return count(self.clean, weights), worse


@dataclass(frozen=True)
class Chosen:
    """Weights, one per member, and cross-validated probabilities (images, classes) of clean and corrupted copies: the
    weights for an image were searched without it."""

    weights: list[float]
    held_out: tuple[torch.Tensor, torch.Tensor | None]


def search(vote: Vote, monitored: Column, seed: int = 0) -> Chosen:
    """Search weights (sum 1) for the best macro F1 on the copies of the metric `monitored`. Also returns
    cross-validated votes: for each image with weights from the other nine tenths."""
    copies, targets = _copies(vote, monitored), vote.targets.numpy()
    clean = torch.zeros(vote.clean.shape[1:])
    corrupted = None if vote.corrupted is None else torch.zeros(vote.corrupted.shape[1:])
    for train, held in _folds(targets, seed):
        weights = list(greedy([copy[:, train] for copy in copies], targets[train]))
        clean[held] = count(vote.clean[:, held], weights)
        if vote.corrupted is not None and corrupted is not None:
            corrupted[held] = count(vote.corrupted[:, held], weights)
    return Chosen([round(float(w), 4) for w in greedy(copies, targets)], (clean, corrupted))


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
            f"--weights: {counted(len(targets), 'validation image')} of as many classes are too few to search weights "
            "on; use --weights equal"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a class with fewer images than folds
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(targets, targets))


def objective(copies: Sequence[Ballots], targets: NDArray[np.int64], weights: Weights) -> float:
    """Macro F1 of the vote, the mean over the copies. Of equal values the lower log-loss is better."""
    return _worth([np.tensordot(weights, copy, 1) for copy in copies], targets)


def _worth(counted: Sequence[NDArray[np.float64]], targets: NDArray[np.int64]) -> float:
    total = 0.0
    for joined in counted:
        own = joined[np.arange(len(targets)), targets] / joined.sum(1)
        loss = -np.log(np.maximum(own, 1e-12)).mean()
        total += F1.of_labels(targets, joined.argmax(1), joined.shape[1]) - TIE * loss
    return total / len(counted)


def greedy(copies: Sequence[Ballots], targets: NDArray[np.int64]) -> Weights:
    """Ensemble selection with replacement (Caruana et al. 2004, sec. 2). Each round adds the member that helps most. A
    member's weight is its share of the rounds, up to the round with the best `objective`."""
    members = len(copies[0])
    taken = np.zeros(members)
    best, best_taken = -np.inf, taken
    for _ in range(ROUNDS):
        trials = [objective(copies, targets, taken + np.eye(members)[member]) for member in range(members)]
        taken = taken + np.eye(members)[int(np.argmax(trials))]
        if max(trials) > best + 1e-9:
            best, best_taken = max(trials), taken
    return np.asarray(best_taken / best_taken.sum())
