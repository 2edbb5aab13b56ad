"""The match of an instruction with the tasks of a candidate's test, from the null row.

A linear head predicts the text encoder's embedding of the instruction from the null candidate's
row. Its cosine with the tasks' keyword vectors, in a softmax, weighs the candidate's figures less
its level. The result, times a factor, is added to the logit.

Shapes: B instructions, M candidates, T tasks, D width, E encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, rms_norm

WIDTH = 384  # of the text encoder
TEMPERATURE, FACTOR = 0.08, 4.0
PENALTY = 10.0


class Match(nn.Module):  # type: ignore[misc]  # torch is not followed
    """head: null row to embedding. temperature of the softmax over tasks, factor: learned with it.
    center: (E,) what is taken off keyword vectors elsewhere; the match is better with it (AUC .726
    compared with .717)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, WIDTH)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())
        self.factor = nn.Parameter(torch.tensor(FACTOR))
        self.center = torch.zeros(WIDTH)

    def whole(self, vectors: Tensor) -> Tensor:
        """(T, E) of length 1 from centred, normalised ones: r > 0 with |center + r v| = 1."""
        along = vectors @ self.center
        r = (along.square() + 1 - self.center.square().sum()).clamp(min=0).sqrt() - along
        return normalize(self.center + r[:, None] * vectors, dim=1)

    def embedding(self, null: Tensor) -> Tensor:
        """(B, D) null rows before the final norm -> (B, E), of length 1."""
        return normalize(self.head(rms_norm(null, null.shape[-1:])), dim=1)

    def forward(self, null: Tensor, vectors: Tensor, figures: Tensor) -> Tensor:
        """(B, M) to add to logits. vectors (T, E), figures (M, T), NaN = not measured."""
        tasks = self.whole(vectors)
        found = matched(self.embedding(null), tasks, figures, self.temperature.exp())
        return self.factor * found

    @torch.no_grad()
    def fit(self, null: Tensor, wanted: Tensor) -> None:
        """Set the head by ridge regression. null (N, D), wanted (N, E) of length 1."""
        x = rms_norm(null, null.shape[-1:]).double()
        y = wanted.double()
        before, after = x.mean(dim=0), y.mean(dim=0)
        x = x - before
        gram = x.T @ x + PENALTY * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ (y - after))
        self.head.weight.copy_(weight.T)
        self.head.bias.copy_(after - before @ weight)


def matched(
    embedding: Tensor, vectors: Tensor, figures: Tensor, temperature: Tensor | float
) -> Tensor:
    """(B, M) figures of the nearest tasks less the candidate's level."""
    measured = ~figures.isnan()
    weight = (embedding @ vectors.T / temperature).softmax(dim=1)
    level = figures.nanmean(dim=1, keepdim=True)
    total = weight @ (figures - level).nan_to_num().T
    return total / (weight @ measured.float().T).clamp(min=1e-4)
