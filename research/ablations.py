"""Measure what each choice of the recipe is worth, at one reduced size.

    python -m research.ablations --data DATA/mmlu_pro_cot --out OUT
        [--transfer-data DATA/llmrouter9 DATA/zeroeval] [--only REGEX] [--table]

Every variant takes the protocol's settings (without its families of candidates, MMLU-Pro rows
only), one pass over a reduced number of instructions, and the change that its name says. The
trained model is scored before it is truncated to an adapter, on validation rows, so that the test
rows stay out of every choice: over candidates that it saw and over those that it never saw; and on
rows of the folders of --transfer-data, of whose outcomes it saw nothing. A variant that OUT holds
is not run again. The command ends with the table of results.

Shapes: B scored instructions, M candidates.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.bundle.types import Int64Array
from engine.datasets.outcomes import Outcomes, fingerprint, read_outcomes
from research.paper import CapabilityFirst
from research.representations import (
    FixedCapabilities,
    Represent,
    bare,
    fixed_dataset,
    fixed_datasets,
    probabilities,
    text_pieces,
    truncated_text,
    weighted,
)
from training.config import TrainingConfig
from training.data.capability import Capabilities
from training.data.dataset import Batch, Dataset, StepInputs, build_dataset, build_datasets
from training.evaluation import metrics
from training.model.model import ModelSat, TextEncoder
from training.state import STATE, TrainState, initial_calibration, prepare, read_data
from training.train import loop, schedule_of, trained_rows
from training.weights.base import CACHE, load_base

SCORED_ROWS = 500  # validation rows
SCORED_ROWS_CAPABILITY_FIRST = 125  # which reads a sequence for each candidate
INIT_STD = 0.041666  # SmolLM2's initializer_range
BASE_SETTINGS: dict[str, Any] = {
    "benchmarks": ("mmlu_pro",),
    "exclude_candidates": "qwen|gemini|phi|jamba|command-r|mathstral",
    "validate_every": 10**9,
}


@dataclass(frozen=True)
class Variant:
    """A change of the recipe.

    config: settings that differ. model: the layout. represent: other representations, fixed
    through training. sampled: candidates that a step shows, 0 = all. teacher: name of a variant
    whose probabilities are half of the target. blank: start from a backbone without pretraining.
    """

    config: dict[str, Any] = field(default_factory=dict)
    model: type[ModelSat] = ModelSat
    represent: tuple[Represent, ...] = ()
    sampled: int = 0
    teacher: str = ""
    blank: bool = False


REAL = {"synthetic_candidates": 0}
VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "another seed": Variant({"seed": 1}),
    "depth 3": Variant({"layers": 3}),
    "depth 12": Variant({"layers": 12}),
    "depth 30": Variant({"layers": 30}),
    "teacher: depth 12": Variant(teacher="depth 12"),
    "teacher: depth 30": Variant(teacher="depth 30"),
    "weights: not pretrained": Variant(blank=True),
    "tuned: half the rate": Variant({"backbone_lr": 1e-4}),
    "tuned: adapter of rank 64": Variant({"tuning": "lora", "backbone_lr": 5e-4}),
    "loss: bce alone": Variant(
        {"instruction_contrast_weight": 0.0, "candidate_contrast_weight": 0.0}
    ),
    "loss: bce + candidate contrast": Variant({"instruction_contrast_weight": 0.0}),
    "loss: bce + instruction contrast": Variant({"candidate_contrast_weight": 0.0}),
    "loss: stronger candidates weigh more": Variant({"skill_weight_exponent": 1.0}),
    "candidates: none synthetic": Variant(REAL),
    "candidates: nine synthetic": Variant({"synthetic_candidates": 9}),
    "candidates: accuracies always resampled": Variant({"exact_accuracy_prob": 0.0}),
    "instructions: never reformatted": Variant({"reformat_prob": 0.0}),
    "size: 500": Variant({"instructions_per_epoch": (500,)}),
    "size: 3,000": Variant({"instructions_per_epoch": (3000,)}),
    "size: each twice": Variant({"epochs": 2}),
    "layout: candidate last, 4 sampled": Variant(REAL, sampled=4),
    "layout: capability first, 4 sampled": Variant(REAL, CapabilityFirst, sampled=4),
    "c: weighted accuracies": Variant(REAL, represent=(weighted,)),
    "c: bare accuracies": Variant(REAL, represent=(bare,)),
    "c: text in pieces": Variant(REAL, represent=(text_pieces,)),
    "c: text truncated": Variant(REAL, represent=(truncated_text,)),
    "c: weighted accuracies and text": Variant(REAL, represent=(weighted, text_pieces)),
}


@dataclass(frozen=True)
class SampledDataset(Dataset):
    """A dataset whose steps show `count` candidates drawn at random."""

    count: int

    def step(
        self,
        random: np.random.Generator,
        batch: Batch,
        capability: Capabilities,
        config: TrainingConfig,
    ) -> StepInputs:
        """Choose `count` of the candidates that Dataset.step chooses."""
        every = super().step(random, batch, capability, config)
        kept = random.permutation(len(every.c))[: self.count]
        return StepInputs(every.c[kept], every.outcomes[:, kept], every.skills[kept])


def run_variant(name: str, data: str, transfer: list[Path], out: Path, instructions: int) -> None:
    """Train and score one variant; writes result.json and result.npz into out/NAME."""
    started, variant, folder = time.monotonic(), VARIANTS[name], out / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    common = BASE_SETTINGS | {"instructions_per_epoch": (instructions,)}
    build_data = fixed_datasets(*variant.represent) if variant.represent else build_datasets
    config = TrainingConfig((data,), str(folder), **common | variant.config)
    run = prepare(config, variant.model, build_data)
    tested = all_candidates(run)
    apply_variant(run, variant, out)
    steps = schedule_of(run)
    if run.step == 0:
        run.start = initial_calibration(run, steps[0])
    loop(run, steps, folder)
    minutes = (time.monotonic() - started) / 60
    slow = variant.model is CapabilityFirst
    count = SCORED_ROWS_CAPABILITY_FIRST if slow else SCORED_ROWS
    rows = np.random.default_rng(0).permutation(tested.validation)[:count]
    trained = trained_rows(run.config, 0, run.datasets[0])
    arrays: dict[str, Any] = {
        "p": probabilities(run, tested, rows),
        "outcomes": tested.outcomes.scores[:, rows].T,
        "seen": np.isin(tested.outcomes.candidates, run.datasets[0].outcomes.candidates),
    }
    if name in teachers():
        soft = probabilities(run, run.datasets[0], trained)
        arrays |= {"soft_targets": soft, "trained_rows": trained}
    if not variant.represent:  # those representations depend on the tasks of the run's own test
        arrays |= score_transfer(run, transfer, trained, count)
    np.savez(folder / "result.npz", **arrays)
    (folder / "result.json").write_text(json.dumps({"minutes": minutes}))
    shutil.rmtree(folder / STATE, ignore_errors=True)


def score_transfer(
    run: TrainState, folders: list[Path], trained: Int64Array, count: int
) -> dict[str, Any]:
    """Score rows of folders of whose outcomes the run saw nothing.

    Test rows are left out, and so are rows that ask a question the run was trained on.

    Returns:
        p_{folder} and outcomes_{folder}, (count, M) each.
    """
    texts = run.datasets[0].outcomes.texts
    known = {fingerprint(texts[row]) for row in trained}
    arrays: dict[str, Any] = {}
    for folder in folders:
        dataset = dataset_of(run, read_outcomes(folder))
        rows = np.random.default_rng(0).permutation(
            np.concatenate([dataset.train, dataset.validation])
        )
        rows = np.array([r for r in rows if fingerprint(dataset.outcomes.texts[r]) not in known])
        rows = rows[:count]
        arrays[f"p_{folder.name}"] = probabilities(run, dataset, rows)
        arrays[f"outcomes_{folder.name}"] = dataset.outcomes.scores[:, rows].T
    return arrays


def teachers() -> set[str]:
    """Name the variants that others are distilled from."""
    return {v.teacher for v in VARIANTS.values()}


def all_candidates(run: TrainState) -> Dataset:
    """Read the run's rows again, with the candidates that it leaves out."""
    return dataset_of(run, read_data(replace(run.config, exclude_candidates=""))[0])


def dataset_of(run: TrainState, outcomes: Outcomes) -> Dataset:
    """Represent `outcomes` as the run does."""
    encoder = TextEncoder(load_base(run.config.encoder, CACHE))
    tokenizer = run.datasets[0].tokenizer
    if isinstance(run.capability, FixedCapabilities):
        return fixed_dataset(outcomes, run.capability, encoder, tokenizer)
    return build_dataset(outcomes, run.capability, encoder, tokenizer)


def apply_variant(run: TrainState, variant: Variant, out: Path) -> None:
    """Change the run's first weights, targets and sampling as the variant says."""
    if variant.blank and run.step == 0:
        reset_weights(run)
    dataset = run.datasets[0]
    if variant.teacher:
        dataset = distilled(dataset, out / slug(variant.teacher) / "result.npz")
    if variant.sampled:
        shared = {f.name: getattr(dataset, f.name) for f in fields(Dataset)}
        dataset = SampledDataset(**shared, count=variant.sampled)
    run.datasets[0] = dataset


@torch.no_grad()
def reset_weights(run: TrainState) -> None:
    """Initialize the layers' matrices as they were before pretraining."""
    for parameter in run.plain.backbone.parameters():
        if parameter.requires_grad:
            parameter.normal_(0.0, INIT_STD)


def distilled(dataset: Dataset, file: Path) -> Dataset:
    """Replace outcomes by the mean of outcome and the teacher's probability.

    For binary cross-entropy that is the same as the mean of both losses.
    """
    teacher = np.load(file)
    rows, scores = teacher["trained_rows"], dataset.outcomes.scores.copy()
    scores[:, rows] = (scores[:, rows] + teacher["soft_targets"].T) / 2
    return replace(dataset, outcomes=replace(dataset.outcomes, scores=scores))


def table(out: Path) -> str:
    """Render the AUCs of every variant in `out`, and its paired difference from base, as Markdown.

    Each AUC is followed by the one per instruction.
    """
    base = out / slug("base") / "result.npz"
    reference = np.load(base) if base.is_file() else None
    folders = [] if reference is None else transfer_folders(reference)
    each = "per instruction"
    headings = ["variant", "AUC, seen", each, "AUC, unseen", each, "difference from base, all"]
    for folder_name in folders:
        headings += [f"AUC, {folder_name}", each]
    headings.append("minutes")
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name in VARIANTS:
        folder = out / slug(name)
        if not (folder / "result.json").is_file():
            continue
        result = np.load(folder / "result.npz")
        cells = [name]
        for part in (result["seen"], ~result["seen"]):
            cells += aucs(result["p"][:, part], result["outcomes"][:, part])
        alone = reference is None or name == "base"
        cells.append("" if alone else difference(result, reference))
        for other in folders:
            scored = f"p_{other}" in result
            cells += aucs(result[f"p_{other}"], result[f"outcomes_{other}"]) if scored else ["", ""]
        cells.append(f"{json.loads((folder / 'result.json').read_text())['minutes']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def aucs(p: Any, outcomes: Any) -> list[str]:
    """Format the AUC over all pairs and the one per instruction."""
    values = metrics.pooled_auc(p, outcomes), metrics.per_instruction_auc(p, outcomes)
    return [f"{value:.4f}" for value in values]


def transfer_folders(result: Any) -> list[str]:
    """Name the other folders that a result was scored on."""
    return [n.removeprefix("p_") for n in result.files if n.startswith("p_")]


def difference(result: Any, reference: Any) -> str:
    """Format the difference of the AUCs over all candidates, with its 95 % interval."""
    p, y = result["p"], result["outcomes"]
    q = reference["p"][: len(p)]

    def lead(rows: Int64Array) -> float:
        return metrics.pooled_auc(p[rows], y[rows]) - metrics.pooled_auc(q[rows], y[rows])

    low, high = metrics.interval(lead, len(p))
    return f"{lead(np.arange(len(p))):+.4f} ({low:+.3f} to {high:+.3f})"


def slug(name: str) -> str:
    """Make a folder name of a variant's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def main() -> None:
    """Run the variants that are missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="data folder to train and score on")
    parser.add_argument(
        "--transfer-data", type=Path, nargs="*", default=[], help="folders that are only scored"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--instructions", type=int, default=1500, help="training instructions (%(default)s)"
    )
    parser.add_argument("--only", default="", help="run variants that match this expression")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    args = parser.parse_args()
    for name in VARIANTS:
        done = (args.out / slug(name) / "result.json").is_file()
        if re.search(args.only, name) and not done and not args.table:
            print(name, flush=True)
            run_variant(name, args.data, args.transfer_data, args.out, args.instructions)
    print(table(args.out))


if __name__ == "__main__":
    main()
