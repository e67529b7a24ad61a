"""How several probabilities become one: soft voting, hard voting, rank averaging."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ballots(method: str, probabilities: Sequence[torch.Tensor]) -> torch.Tensor:
    """What each of M members brings to the vote, (M, N, classes) float64: the ensemble is their weighted mean.

    soft_voting: its probabilities. hard_voting: one vote an image, and so little of the probabilities that they decide
    ties alone. rank_averaging: each class's ranks over the images, so that members that are sure of themselves by
    different measures count alike.
    """
    stack = torch.stack([p.double() for p in probabilities])
    if method == "hard_voting":
        return torch.nn.functional.one_hot(stack.argmax(2), stack.shape[2]).double() + 1e-6 * stack
    if method == "rank_averaging":
        from scipy.stats import rankdata

        return torch.from_numpy(rankdata(stack.numpy(), axis=1)) / stack.shape[1]
    return stack


def count(cast: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of ballots (M, N, classes) as a distribution (N, classes) float32. Only the weights' ratios
    count."""
    share = torch.tensor(list(weights), dtype=torch.float64)
    joined = ((share / share.sum()).view(-1, 1, 1) * cast).sum(0)
    return (joined / joined.sum(1, keepdim=True)).float()


def combine(method: str, probabilities: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Join the members' (N, classes) probabilities into one (N, classes) distribution."""
    return count(ballots(method, probabilities), weights)
