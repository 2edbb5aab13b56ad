"""Losses over a (B, M) matrix of outcomes of B instructions and M candidates.

bce       binary cross-entropy: calibrates the probability of each outcome.
contrast  Model-SAT's cross-entropy (AAAI 2025, section 4): for each candidate, an instruction that
          it did well against those of the batch that it did badly, over their 'Yes' scores.
          Transposed: for each instruction, a candidate that did well against those that did badly.
          That is what a router is for, and what the other losses learn last.

NaN marks an outcome that was not measured and is left out. Weights let stronger candidates count
more. The paper samples them more often. That has the same expectation for bce and the contrast of
instructions, but not for that of candidates, whose rivals are not weighted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def bce(logits: Tensor, outcomes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy; 0 if nothing was measured.

    logits, outcomes: (B, M). weights: broadcast to (B, M).
    """
    known = ~outcomes.isnan()
    if not known.any():
        return logits.sum() * 0.0
    values = functional.binary_cross_entropy_with_logits(
        logits[known], outcomes[known], reduction="none"
    )
    return _mean(values, known, weights)


def contrast(
    logits: Tensor, outcomes: Tensor, weights: Tensor | None = None, most: int = 0
) -> Tensor:
    """Mean over positives of -log(exp s+ / (exp s+ + sum of exp s-)) along the first axis.

    logits, outcomes: (K, G), K competitors in each of G groups. weights: broadcast to (K, G). A
    group needs a good (> 0.5) and a bad outcome to count; the loss is 0 if no group has both. most:
    bad outcomes of a group that count, drawn at random (k - 1 in the paper's k-shot batches); 0:
    all.
    """
    known = ~outcomes.isnan()
    good = known & (outcomes > 0.5)
    bad = known & (outcomes <= 0.5)
    if 0 < most < len(bad):
        drawn = torch.rand(bad.shape, device=bad.device).masked_fill(~bad, -1.0)
        bad &= drawn >= drawn.topk(most, dim=0).values[-1:]
    rivals = logits.masked_fill(~bad, -torch.inf).logsumexp(dim=0, keepdim=True)
    counted = good & bad.any(dim=0, keepdim=True)
    if not counted.any():
        return logits.sum() * 0.0
    margin = rivals.masked_fill(rivals.isinf(), 0.0) - logits
    return _mean(functional.softplus(margin)[counted], counted, weights)


def _mean(values: Tensor, at: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of `values`, one for each true element of `at`, with the weights of those elements."""
    if weights is None:
        return values.mean()
    share = weights.expand_as(at)[at]
    return (values * share).sum() / share.sum()


def total(
    logits: Tensor,
    outcomes: Tensor,
    instruction_contrast: float,
    candidate_contrast: float,
    weights: Tensor | None = None,
    *,
    bce_weight: float = 1.0,
    rivals: int = 0,
) -> Tensor:
    """Sum bce, the contrast of instructions and the contrast of candidates, weighted.

    logits, outcomes: (B, M). instruction_contrast, candidate_contrast: weights of the losses.
    weights: (M,) of the candidates. rivals: see `most` of contrast.
    """
    by_row = None if weights is None else weights[:, None]
    return (
        bce_weight * bce(logits, outcomes, weights)
        + instruction_contrast * contrast(logits, outcomes, weights, rivals)
        + candidate_contrast * contrast(logits.T, outcomes.T, by_row, rivals)
    )
