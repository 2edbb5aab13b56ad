"""Estimate what a training run needs before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from training.data.dataset import Batch
from training.state import TrainState

ADAM_BYTES = 16  # per trained parameter: value, gradient, two moments
# float32 values kept for the backward pass, per position and layer, in widths of the residual
# stream: about 34 (Korthikanti et al., 2022, table 2, in half precision: 34 s b h bytes), doubled.
ACTIVATION_FLOATS = 68


def count_positions(run: TrainState, batch: Batch) -> int:
    """Count the positions of the residual stream that a training step on `batch` computes."""
    instructions, tokens = batch.tokens.shape
    candidates = len(run.datasets[batch.dataset].outcomes.candidates)
    candidates += run.config.synthetic_candidates
    return run.plain.count_positions(instructions, tokens, candidates)


def estimate(run: TrainState, steps: list[Batch], forward: Callable[..., Any]) -> str:
    """Describe steps, candidates, memory and time of a run.

    One forward and backward pass is timed on the step of median length; it changes nothing.
    """
    config, model = run.config, run.plain
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = model.backbone.get_input_embeddings().weight.shape[1]
    positions = max(count_positions(run, b) for b in steps)
    activations = ACTIVATION_FLOATS * width * config.layers * positions
    memory = 4 * (total - trained) + ADAM_BYTES * trained + activations
    remaining = steps[run.step :]
    seconds = 0.0
    if remaining:
        typical = sorted(remaining, key=lambda b: b.tokens.size)[len(remaining) // 2]
        started = time.monotonic()
        value, _ = forward(run, typical, np.random.default_rng(0))
        run.accelerator.backward(value)
        run.optimizer.zero_grad()
        seconds = (time.monotonic() - started) * len(remaining)
    datasets = ", ".join(
        f"{d.outcomes.name} ({len(d.train[: config.limit(n)])} training rows"
        f" x {len(d.outcomes.candidates)})"
        for n, d in enumerate(run.datasets)
    )
    return (
        f"run: {len(steps)} steps of {config.batch_size} instructions from {datasets};"
        f" {config.layers} layers, {config.tuning}, {trained / 1e6:.1f} of {total / 1e6:.1f}"
        " million parameters trained\n"
        f"needs: about {memory / 2**30:.1f} GiB of memory plus the data, about"
        f" {seconds / 60:.0f} minutes from step {run.step}"
    )
