"""Train and measure Model-SAT with the paper's layout and text representation.

    python -m research.paper --config research/configs/paper.json --data DIR... --output-dir DIR
    python -m research.paper --layout candidate_last --representation text --data DIR... \\
        --output-dir DIR

The paper (Zhang, Zhan, Ye: "Capability Instruction Tuning", AAAI 2025) reads one sequence for each
candidate, its embedding first and the prompt after it, and represents a candidate by sentences
about its accuracies. Both cost more to serve than what ships, so a bundle holds neither: they are
trained, calibrated and measured here, in torch, on the same rows. --output-dir gets what
`training.train` writes; report.json has the figures of the test rows.

Shapes: B instructions, L prompt tokens, M candidates, D backbone width.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from engine.api.errors import ModelsatError
from engine.bundle.manifest import Calibration
from research.representations import fixed_pools, predict_variants, text_pieces
from training.config import Plan, parse_plan
from training.data.capability import folded
from training.data.dataset import make_pools
from training.evaluation import metrics
from training.evaluation.plots import plot_training
from training.model.model import ModelSat, additive_mask
from training.state import PoolBuilder, Run
from training.train import fit, ship_backbone, trained_rows
from training.weights.adapter import save_pretrained

Layout = Literal["candidate_last", "capability_first"]
Representation = Literal["accuracy_weighted", "text"]


class CapabilityFirst(ModelSat):
    """Score with the paper's layout: a sequence [e_c, prompt] for each candidate.

    It takes B M sequences of 1 + L positions, where the served layout takes B of L + M.
    """

    def margins(self, tokens: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """tokens (B, L), lengths (B,), embeddings (M, D) -> margins (B, M)."""
        prefix = self.backbone.get_input_embeddings()(tokens)
        inputs, mask, positions = capability_first(prefix, embeddings)
        hidden = self.hidden(inputs, mask, positions, tail=inputs.shape[1])
        per_pair = hidden.unflatten(0, (len(tokens), len(embeddings)))  # (B, M, 1 + L, D)
        last = lengths[:, None, None, None].expand(-1, len(embeddings), 1, hidden.shape[-1])
        return self.read_out(per_pair.gather(2, last).squeeze(2))

    @staticmethod
    def count_positions(instructions: int, tokens: int, candidates: int) -> int:
        """Count the positions of the residual stream that one forward pass computes."""
        return instructions * candidates * (1 + tokens)


def capability_first(prefix: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out a sequence for each pair of instruction and candidate.

    prefix (B, L, D), embeddings (M, D) -> inputs (B M, 1 + L, D), additive mask
    (B M, 1, 1 + L, 1 + L), positions (B M, 1 + L). Right padding needs no mask of its own, because
    a causal position never sees what follows it.
    """
    batch, length, width = prefix.shape
    count = len(embeddings)
    first = embeddings[None, :, None].expand(batch, -1, 1, -1)
    rest = prefix[:, None].expand(-1, count, -1, -1)
    inputs = torch.cat([first, rest], dim=2).reshape(batch * count, 1 + length, width)
    steps = torch.arange(1 + length, device=prefix.device)
    allowed = (steps[:, None] >= steps).expand(batch * count, -1, -1)
    return inputs, additive_mask(allowed, prefix), steps.expand(batch * count, -1)


MODELS: dict[Layout, type[ModelSat]] = {
    "candidate_last": ModelSat,
    "capability_first": CapabilityFirst,
}
POOLS: dict[Representation, PoolBuilder] = {
    "accuracy_weighted": make_pools,
    "text": fixed_pools(text_pieces),
}


@dataclass(frozen=True)
class PaperPlan(Plan):
    """Settings of a training run, and which of the two methods it uses for each part."""

    layout: Layout = "capability_first"
    representation: Representation = "text"


def train(plan: PaperPlan) -> dict[str, Any]:
    """Run or resume `plan`; returns the closing report."""
    run = fit(plan, MODELS[plan.layout], POOLS[plan.representation])
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return {}
    run.model = run.plain  # from here on one process works alone
    out = Path(plan.output_dir)
    ship_backbone(run, out)
    platt = calibrate(run)
    report = report_of(run, platt)
    calibration = Calibration(
        platt.scale * run.start.scale, platt.scale * run.start.offset + platt.offset
    )
    capability = run.capability
    connector = folded(run.model.connector, capability.shift, capability.scale)
    save_pretrained(out, asdict(plan), connector, capability.norms, calibration, report)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot_training(out / "metrics.jsonl", out / "curves.png")
    return report


def calibrate(run: Run) -> Calibration:
    """Fit Platt's scale and offset on the validation rows of every folder, in every variant."""
    margins, observed = [], []
    for pool in run.pools:
        predicted = predict_variants(run, pool, pool.validation)
        scores = pool.outcomes.scores[:, pool.validation].T
        margins.append(predicted.ravel())
        observed.append(np.broadcast_to(scores, predicted.shape).ravel())
    return Calibration(*metrics.platt(np.concatenate(margins), np.concatenate(observed)))


def report_of(run: Run, platt: Calibration) -> dict[str, Any]:
    """Measure every folder's test rows; probabilities are the mean over the variants."""
    report: dict[str, Any] = {"steps": run.step, "datasets": {}}
    for number, pool in enumerate(run.pools):
        log_odds = platt.scale * predict_variants(run, pool, pool.test) + platt.offset
        report["datasets"][pool.outcomes.name] = {
            "instructions_tested": len(pool.test),
            "instructions_trained": len(trained_rows(run.plan, number, pool)),
            **metrics.report(expit(log_odds).mean(axis=0), pool.outcomes.scores[:, pool.test].T),
        }
    return report


def main() -> None:
    """Parse the settings from the command line, train and measure."""
    print(json.dumps(train(parse_plan(__doc__, kind=PaperPlan))))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
