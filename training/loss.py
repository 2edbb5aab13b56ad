"""Losses over a (B, M) matrix of outcomes. NaN marks what was not measured and is left out.

bce         calibrated probability of each outcome.
contrast    Model-SAT's cross-entropy (AAAI 2025, section 4): for each candidate one well-done
            instruction against the badly done ones of the batch, over their 'Yes' scores.
            Transposed: within each instruction, a candidate that did well against those that did
            not; it is what a router is for, and what the pooled loss learns last.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bce(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean binary cross-entropy, 0 where nothing was measured. logits, outcomes: (B, M)."""
    known = ~outcomes.isnan()
    if not known.any():
        return logits.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(logits[known], outcomes[known])


def contrast(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean over positives of -log(exp s+ / (exp s+ + sum of exp s-)) along the first axis.

    logits, outcomes: (K, G): K competitors in each of G groups. A group without both a good
    (> 0.5) and a bad outcome adds nothing; 0 where no group has both.
    """
    known = ~outcomes.isnan()
    good = known & (outcomes > 0.5)
    bad = known & (outcomes <= 0.5)
    rivals = logits.masked_fill(~bad, -torch.inf).logsumexp(dim=0, keepdim=True)
    counted = good & bad.any(dim=0, keepdim=True)
    if not counted.any():
        return logits.sum() * 0.0
    margin = rivals.masked_fill(rivals.isinf(), 0.0) - logits
    return functional.softplus(margin)[counted].mean()


def total(logits: Tensor, outcomes: Tensor, across: float, within: float) -> Tensor:
    """bce + across * contrast of instructions + within * contrast of candidates."""
    return (
        bce(logits, outcomes)
        + across * contrast(logits, outcomes)
        + within * contrast(logits.T, outcomes.T)
    )
