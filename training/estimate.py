"""What a run will need, said before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from training.data.dataset import Batch
from training.state import Run

ADAM = 16  # bytes a trained parameter: value, gradient, two moments
# float32 values kept for the backward pass, a row and layer, in widths of the residual stream:
# about 34 of them (Korthikanti et al., 2022, table 2, in half precision: 34 s b h bytes), doubled.
KEPT = 68


def rows_of(run: Run, batch: Batch) -> int:
    """Count the positions of the residual stream that a training step on `batch` computes."""
    instructions, tokens = batch.tokens.shape
    shown = len(run.pools[batch.pool].outcomes.candidates) + run.plan.synthetic_candidates
    return run.plain.count_positions(instructions, tokens, shown)


def estimate(run: Run, steps: list[Batch], forward: Callable[..., Any]) -> str:
    """Steps, candidates, memory and time; one forward and backward pass is measured, on the step
    of median length, and changes nothing."""
    plan, model = run.plan, run.plain
    total = sum(p.numel() for p in model.parameters())
    tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = model.backbone.get_input_embeddings().weight.shape[1]
    rows = max(rows_of(run, b) for b in steps)
    memory = 4 * (total - tuned) + ADAM * tuned + KEPT * width * plan.layers * rows
    left = steps[run.step :]
    if left:
        typical = sorted(left, key=lambda b: b.tokens.size)[len(left) // 2]
        began = time.monotonic()
        value, _ = forward(run, typical, np.random.default_rng(0))
        run.accelerator.backward(value)
        run.optimizer.zero_grad()
        seconds = (time.monotonic() - began) * len(left)
    else:
        seconds = 0.0
    pools = ", ".join(
        f"{p.outcomes.name} ({len(p.train[: plan.limit(n)])} training rows"
        f" x {len(p.outcomes.candidates)})"
        for n, p in enumerate(run.pools)
    )
    return (
        f"plan: {len(steps)} steps of {plan.batch_size} instructions from {pools};"
        f" {plan.layers} layers,"
        f" {plan.tuning}, {tuned / 1e6:.1f} of {total / 1e6:.1f} million parameters trained\n"
        f"needs: about {memory / 2**30:.1f} GiB of memory beside the data, about"
        f" {seconds / 60:.0f} minutes from step {run.step}"
    )
