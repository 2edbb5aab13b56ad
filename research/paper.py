"""Train and measure Model-SAT with the paper's layout and text representation.

    python -m research.paper --config research/configs/paper.json --data DIR... --output-dir DIR
    python -m research.paper --layout candidate_last --representation text --data DIR... \\
        --output-dir DIR

The paper (Zhang, Zhan, Ye: "Capability Instruction Tuning", AAAI 2025) reads one sequence for each
candidate, its embedding first, then the instruction and the prompt (`instruction_first`;
`capability_first` has the prompt before the instruction), and represents a candidate by sentences
about its accuracies. Both cost more to serve than what ships, so a bundle holds neither: they are
trained, calibrated and measured here, in torch, on the same rows. Its loss is the contrast of
instructions alone (--bce-weight 0) against k - 1 bad ones (--contrast-rivals). Its first stage
tunes the connector alone on data of the test's kind (--connector-warmup-steps with
--connector-warmup-data first). The encoder is never tuned here. --output-dir gets what
`training.train` writes; report.json has the figures of the test rows.

Shapes: B instructions, L prompt tokens, M candidates, D backbone width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.bundle.arrays import TaskNorms
from engine.bundle.manifest import Calibration
from engine.bundle.prompt import AFTER, INQUIRY, Tokenizer
from engine.datasets.outcomes import Outcomes
from research.representations import fixed_datasets, predict_variants, text_pieces
from training.config import TrainingConfig, parse_config, setting
from training.data.capability import Capabilities, fuse_standardization
from training.data.dataset import Dataset, build_datasets
from training.evaluation import metrics
from training.evaluation.plots import plot_training
from training.model.model import ModelSat, TextEncoder, additive_mask
from training.state import DatasetBuilder, TrainState
from training.train import fit, ship_backbone, trained_rows
from training.weights.adapter import save_pretrained

Layout = Literal["candidate_last", "capability_first", "instruction_first"]
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
    "instruction_first": CapabilityFirst,
}
DATASETS: dict[Representation, DatasetBuilder] = {
    "accuracy_weighted": build_datasets,
    "text": fixed_datasets(text_pieces),
}


def instruction_before_prompt(build: DatasetBuilder) -> DatasetBuilder:
    """Make a builder of datasets with the paper's order: the instruction, then the prompt."""

    def built(
        outcomes: Sequence[Outcomes],
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        norms: TaskNorms | None = None,
    ) -> tuple[Capabilities, Sequence[Dataset]]:
        capability, found = build(outcomes, encoder, tokenizer, norms)
        before, after = (
            np.array(tokenizer.encode(part, add_special_tokens=False).ids, dtype=np.int64)
            for part in (INQUIRY, AFTER)
        )
        ordered = [
            replace(
                dataset,
                tokens=[
                    np.concatenate([t[len(before) : len(t) - len(after)], before, after])
                    for t in dataset.tokens
                ],
            )
            for dataset in found
        ]
        return capability, ordered

    return built


def builder_of(config: PaperConfig) -> DatasetBuilder:
    """Return what builds the datasets of a run.

    Raises InvalidInputError: questions are reformatted, which the layout does not know.
    """
    build = DATASETS[config.representation]
    if config.layout != "instruction_first":
        return build
    if config.reformat_prob:
        problem = "must be 0 with --layout instruction_first."
        raise InvalidInputError(Violation("--reformat-prob", problem))
    return instruction_before_prompt(build)


@dataclass(frozen=True)
class PaperConfig(TrainingConfig):
    """Settings of a training run, and which of the two methods it uses for each part."""

    layout: Layout = setting("capability_first", "order of prompt and candidate")
    representation: Representation = setting("text", "how a candidate is represented")


def train(config: PaperConfig) -> dict[str, Any]:
    """Start or resume a run, and finish it; returns the report of the test rows."""
    run = fit(config, MODELS[config.layout], builder_of(config))
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return {}
    run.model = run.plain  # from here on one process works alone
    out = Path(config.output_dir)
    ship_backbone(run, out)
    platt = calibrate(run)
    report = report_of(run, platt)
    calibration = Calibration(
        platt.scale * run.start.scale, platt.scale * run.start.offset + platt.offset
    )
    capability = run.capability
    connector = fuse_standardization(run.model.connector, capability.shift, capability.scale)
    save_pretrained(out, asdict(config), connector, capability.norms, calibration, report)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot_training(out / "metrics.jsonl", out / "curves.png")
    return report


def calibrate(run: TrainState) -> Calibration:
    """Fit Platt's scale and offset on the validation rows of every folder, in every variant."""
    margins, observed = [], []
    for dataset in run.datasets:
        predicted = predict_variants(run, dataset, dataset.validation)
        scores = dataset.outcomes.scores[:, dataset.validation].T
        margins.append(predicted.ravel())
        observed.append(np.broadcast_to(scores, predicted.shape).ravel())
    return Calibration(*metrics.platt(np.concatenate(margins), np.concatenate(observed)))


def report_of(run: TrainState, platt: Calibration) -> dict[str, Any]:
    """Measure every folder's test rows; probabilities are the mean over the variants."""
    report: dict[str, Any] = {"steps": run.step, "datasets": {}}
    for number, dataset in enumerate(run.datasets):
        log_odds = platt.scale * predict_variants(run, dataset, dataset.test) + platt.offset
        report["datasets"][dataset.outcomes.name] = {
            "instructions_tested": len(dataset.test),
            "instructions_trained": len(trained_rows(run.config, number, dataset)),
            **metrics.report(
                expit(log_odds).mean(axis=0), dataset.outcomes.scores[:, dataset.test].T
            ),
        }
    return report


def main() -> None:
    """Parse the settings from the command line, train and measure."""
    print(json.dumps(train(parse_config(__doc__, kind=PaperConfig))))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
