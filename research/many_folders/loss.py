"""Losses of a step, without a branch that waits for the device. NaN outcomes are left out.

Shapes: B instructions, M candidates, D width, R remembered instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, softplus

TAU, SHRINK = 0.15, 2.0  # of the memory: kernel width over cosine, shrinkage of residuals
REMEMBERED = 256


def bce(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Mean cross-entropy of outcomes in [0, 1]."""
    known = ~outcomes.isnan()
    values = binary_cross_entropy_with_logits(logits, outcomes.nan_to_num(), reduction="none")
    return (values * known).sum() / known.sum().clamp(min=1)


def contrast(logits: Tensor, outcomes: Tensor) -> Tensor:
    """training.model.loss.contrast."""
    known = ~outcomes.isnan()
    good, bad = known & (outcomes > 0.5), known & (outcomes <= 0.5)
    rivals = logits.masked_fill(~bad, -1e4).logsumexp(dim=0, keepdim=True)
    counted = good & bad.any(dim=0, keepdim=True)
    values = softplus(rivals - logits)
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def regret(logits: Tensor, outcomes: Tensor, prices: Tensor, width: float = 0.1) -> Tensor:
    """Mean utility lost by a soft choice of the highest p - price. prices: (B, M)."""
    known = ~outcomes.isnan()
    utility = (logits.sigmoid() - prices) / width
    share = utility.masked_fill(~known, -1e4).softmax(dim=1)
    worth = (outcomes - prices).nan_to_num()
    best = worth.masked_fill(~known, -1e4).amax(dim=1)
    lost = best.clamp(min=-1) - (share * worth * known).sum(dim=1)
    return (lost * known.any(dim=1)).mean()


@dataclass
class Memory:
    """The last REMEMBERED instructions of a folder: null rows (R, D), residuals and their
    information (R, M)."""

    rows: Tensor
    residual: Tensor
    information: Tensor
    filled: int = 0

    @classmethod
    def empty(cls, width: int, candidates: int, device: torch.device) -> Memory:
        """Nothing remembered."""
        sizes = (width, candidates, candidates)
        return cls(*(torch.zeros(REMEMBERED, n, device=device) for n in sizes))

    def recalled(self, null: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Common part (B, 1) and relative part (B, M) of the residuals of alike instructions."""
        kept = min(self.filled, REMEMBERED)
        rows = self.rows[:kept]
        center = rows.mean(dim=0)
        near = normalize(null - center, dim=1) @ normalize(rows - center, dim=1).T
        weight = ((near - 1) / TAU).exp()
        num = weight @ self.residual[:kept][:, real]
        den = weight @ self.information[:kept][:, real]
        common = num.sum(1, keepdim=True) / (den.sum(1, keepdim=True) + SHRINK)
        return common, (num - common * den) / (den + SHRINK)

    def remember(self, null: Tensor, logits: Tensor, outcomes: Tensor, real: Tensor) -> None:
        """Add a batch; the oldest go."""
        at = torch.arange(self.filled, self.filled + len(null), device=null.device) % REMEMBERED
        known = ~outcomes.isnan()
        p = logits.sigmoid()
        for store, value in (
            (self.residual, torch.where(known, outcomes - p, 0.0)),
            (self.information, torch.where(known, p * (1 - p), 0.0)),
        ):
            fresh = torch.zeros(len(null), store.shape[1], device=null.device)
            fresh[:, real] = value
            store[at] = fresh
        self.rows[at] = null
        self.filled += len(null)
