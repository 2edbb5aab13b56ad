"""Losses over a (B, M) matrix of outcomes. NaN marks what was not measured and is left out.

bce         calibrated probability of each outcome.
contrast    Model-SAT's cross-entropy (AAAI 2025, section 4): for each candidate one well-done
            instruction against the badly done ones of the batch, over their 'Yes' scores.
            Transposed: within each instruction, a candidate that did well against those that did
            not; it is what a router is for, and what the pooled loss learns last.

Weights let stronger candidates count more, as the paper samples them more often: the same in
expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bce(logits: Tensor, outcomes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy, 0 where nothing was measured. logits, outcomes: (B, M); weights:
    to be spread over them."""
    known = ~outcomes.isnan()
    if not known.any():
        return logits.sum() * 0.0
    values = functional.binary_cross_entropy_with_logits(
        logits[known], outcomes[known], reduction="none"
    )
    return _mean(values, known, weights)


def contrast(logits: Tensor, outcomes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over positives of -log(exp s+ / (exp s+ + sum of exp s-)) along the first axis.

    logits, outcomes: (K, G): K competitors in each of G groups; weights: to be spread over them. A
    group without both a good (> 0.5) and a bad outcome adds nothing; 0 where no group has both.
    """
    known = ~outcomes.isnan()
    good = known & (outcomes > 0.5)
    bad = known & (outcomes <= 0.5)
    rivals = logits.masked_fill(~bad, -torch.inf).logsumexp(dim=0, keepdim=True)
    counted = good & bad.any(dim=0, keepdim=True)
    if not counted.any():
        return logits.sum() * 0.0
    margin = rivals.masked_fill(rivals.isinf(), 0.0) - logits
    return _mean(functional.softplus(margin)[counted], counted, weights)


def _mean(values: Tensor, at: Tensor, weights: Tensor | None) -> Tensor:
    """Of `values`, which stand where `at` is true."""
    if weights is None:
        return values.mean()
    share = weights.expand_as(at)[at]
    return (values * share).sum() / share.sum()


def total(
    logits: Tensor, outcomes: Tensor, across: float, within: float, weights: Tensor | None = None
) -> Tensor:
    """bce + across * contrast of instructions + within * contrast of candidates; weights: (M,)."""
    by_row = None if weights is None else weights[:, None]
    return (
        bce(logits, outcomes, weights)
        + across * contrast(logits, outcomes, weights)
        + within * contrast(logits.T, outcomes.T, by_row)
    )
