"""Ablations at one reduced size: what each choice of the recipe is worth.

    python -m research.ablations --data DATA/mmlu_pro_cot --transfer-data DATA/llmrouter9
    DATA/zeroeval
        --out OUT [--only REGEX] [--table] [--instructions 1500]

Every variant is the protocol's plan (its families left out, MMLU-Pro rows alone) on a reduced
number of instructions once, changed as its name says. The tuned model itself is scored, without
the cut to an adapter, on validation rows, so that the test rows stay out of every choice: over
the candidates it saw and over those it never saw; and on rows of folders of whose outcomes it saw
nothing. A variant found in OUT is not run again. Ends with the table.
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
from numpy.typing import NDArray

from engine.datasets.outcomes import Outcomes, fingerprint, read_outcomes
from research.paper import CapabilityFirst
from research.representations import (
    FixedCapabilities,
    Represent,
    bare,
    fixed_pool,
    fixed_pools,
    probabilities,
    text_pieces,
    truncated_text,
    weighted,
)
from training.config import Plan
from training.data.capability import Capabilities
from training.data.dataset import Batch, Pool, Shown, make_pool, make_pools
from training.evaluation import metrics
from training.model.model import ModelSat, TextEncoder
from training.state import STATE, Run, prepare, read_pools, start_calibration
from training.train import loop, schedule_of, trained_rows
from training.weights.base import CACHE, load_base

SCORED, SCORED_EACH = 500, 125  # validation rows; where every candidate is a sequence of its own
INIT_STD = 0.041666  # SmolLM2's initializer_range


COMMON: dict[str, Any] = {
    "benchmarks": ("mmlu_pro",),
    "exclude_candidates": "qwen|gemini|phi|jamba|command-r|mathstral",
    "validate_every": 10**9,
}


@dataclass(frozen=True)
class Variant:
    """plan: settings that differ. represent: other representations, fixed through training.
    sampled: candidates that a step shows, 0 = all. teacher: a variant whose probabilities are half
    of what a step aims at. blank: no pretrained backbone."""

    plan: dict[str, Any] = field(default_factory=dict)
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
    "loss: bce + within": Variant({"instruction_contrast_weight": 0.0}),
    "loss: bce + across": Variant({"candidate_contrast_weight": 0.0}),
    "loss: stronger candidates weigh more": Variant({"skill_weight_exponent": 1.0}),
    "candidates: none made": Variant(REAL),
    "candidates: nine made": Variant({"synthetic_candidates": 9}),
    "candidates: figures always redrawn": Variant({"exact_accuracy_prob": 0.0}),
    "instructions: never reworded": Variant({"reformat_prob": 0.0}),
    "size: 500": Variant({"instructions_per_epoch": (500,)}),
    "size: 3,000": Variant({"instructions_per_epoch": (3000,)}),
    "size: each twice": Variant({"epochs": 2}),
    "layout: candidate last, 4 sampled": Variant(REAL, sampled=4),
    "layout: capability first, 4 sampled": Variant(REAL, CapabilityFirst, sampled=4),
    "c: weighted figures": Variant(REAL, represent=(weighted,)),
    "c: bare figures": Variant(REAL, represent=(bare,)),
    "c: text in pieces": Variant(REAL, represent=(text_pieces,)),
    "c: text truncated": Variant(REAL, represent=(truncated_text,)),
    "c: weighted figures and text": Variant(REAL, represent=(weighted, text_pieces)),
}


@dataclass(frozen=True)
class Sampled(Pool):
    """A pool whose steps show `count` candidates."""

    count: int

    def step(
        self, random: np.random.Generator, batch: Batch, capability: Capabilities, plan: Plan
    ) -> Shown:
        """`count` of the candidates."""
        every = super().step(random, batch, capability, plan)
        kept = random.permutation(len(every.c))[: self.count]
        return Shown(every.c[kept], every.outcomes[:, kept], every.levels[kept])


def run_variant(name: str, data: str, elsewhere: list[Path], out: Path, instructions: int) -> None:
    """Train and score one variant; leaves result.json and result.npz in out/NAME."""
    started, variant, folder = time.monotonic(), VARIANTS[name], out / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    common = COMMON | {"instructions_per_epoch": (instructions,)}
    build_pools = fixed_pools(*variant.represent) if variant.represent else make_pools
    run = prepare(Plan((data,), str(folder), **common | variant.plan), variant.model, build_pools)
    tested = everyone(run)
    change(run, variant, out)
    steps = schedule_of(run)
    if run.step == 0:
        run.start = start_calibration(run, steps[0])
    loop(run, steps, folder)
    minutes = (time.monotonic() - started) / 60
    count = SCORED_EACH if variant.model is CapabilityFirst else SCORED
    rows = np.random.default_rng(0).permutation(tested.validation)[:count]
    learnt = trained_rows(run.plan, 0, run.pools[0])
    soft = probabilities(run, run.pools[0], learnt) if name in teachers() else np.zeros(0)
    p = probabilities(run, tested, rows)
    truth = tested.outcomes.scores[:, rows].T
    seen = np.isin(tested.outcomes.candidates, run.pools[0].outcomes.candidates)
    found = {} if variant.represent else scored_elsewhere(run, elsewhere, learnt, count)
    np.savez(folder / "result.npz", p=p, truth=truth, seen=seen, soft=soft, learnt=learnt, **found)
    (folder / "result.json").write_text(json.dumps({"minutes": minutes}))
    shutil.rmtree(folder / STATE, ignore_errors=True)


def scored_elsewhere(
    run: Run, folders: list[Path], learnt: NDArray[np.int64], count: int
) -> dict[str, Any]:
    """p_{folder} and truth_{folder}, (count, M) each, of rows that are neither test rows nor ask
    what the run learnt."""
    texts = run.pools[0].outcomes.texts
    asked = {fingerprint(texts[row]) for row in learnt}
    found: dict[str, Any] = {}
    for folder in folders:
        pool = pool_of(run, read_outcomes(folder))
        rows = np.random.default_rng(0).permutation(np.concatenate([pool.train, pool.validation]))
        rows = np.array([r for r in rows if fingerprint(pool.outcomes.texts[r]) not in asked])
        rows = rows[:count]
        found[f"p_{folder.name}"] = probabilities(run, pool, rows)
        found[f"truth_{folder.name}"] = pool.outcomes.scores[:, rows].T
    return found


def teachers() -> set[str]:
    """Variants that others learn from."""
    return {v.teacher for v in VARIANTS.values()}


def everyone(run: Run) -> Pool:
    """The plan's rows with the candidates that it leaves out."""
    return pool_of(run, read_pools(replace(run.plan, exclude_candidates=""))[0])


def pool_of(run: Run, outcomes: Outcomes) -> Pool:
    """`outcomes` as the run reads them."""
    encoder, tokenizer = TextEncoder(load_base(run.plan.encoder, CACHE)), run.pools[0].tokenizer
    if isinstance(run.capability, FixedCapabilities):
        return fixed_pool(outcomes, run.capability, encoder, tokenizer)
    return make_pool(outcomes, run.capability, encoder, tokenizer)


def change(run: Run, variant: Variant, out: Path) -> None:
    """Make `run` the variant's: its first weights, its targets, the candidates of a step."""
    if variant.blank and run.step == 0:
        forget(run)
    pool = run.pools[0]
    if variant.teacher:
        pool = taught(pool, out / slug(variant.teacher) / "result.npz")
    if variant.sampled:
        shared = {f.name: getattr(pool, f.name) for f in fields(Pool)}
        pool = Sampled(**shared, count=variant.sampled)
    run.pools[0] = pool


@torch.no_grad()
def forget(run: Run) -> None:
    """The layers' matrices as they were before pretraining."""
    for parameter in run.plain.backbone.parameters():
        if parameter.requires_grad:
            parameter.normal_(0.0, INIT_STD)


def taught(pool: Pool, file: Path) -> Pool:
    """Aim at the mean of outcome and teacher's probability: for binary cross-entropy the same as
    the mean of both losses."""
    teacher = np.load(file)
    scores = pool.outcomes.scores.copy()
    scores[:, teacher["learnt"]] = (scores[:, teacher["learnt"]] + teacher["soft"].T) / 2
    return replace(pool, outcomes=replace(pool.outcomes, scores=scores))


def table(out: Path) -> str:
    """Markdown: AUCs of every variant that is there, and the paired difference from base."""
    base = out / slug("base") / "result.npz"
    reference = np.load(base) if base.is_file() else None
    places = [] if reference is None else elsewhere_in(reference)
    headings = ["variant", "AUC, seen", "within", "AUC, unseen", "within", "beside base, all"]
    for place in places:
        headings += [f"AUC, {place}", "within"]
    headings.append("minutes")
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name in VARIANTS:
        folder = out / slug(name)
        if not (folder / "result.json").is_file():
            continue
        result = np.load(folder / "result.npz")
        cells = [name]
        for part in (result["seen"], ~result["seen"]):
            cells += aucs(result["p"][:, part], result["truth"][:, part])
        cells.append("" if reference is None or name == "base" else beside(result, reference))
        for place in places:
            known = f"p_{place}" in result
            cells += aucs(result[f"p_{place}"], result[f"truth_{place}"]) if known else ["", ""]
        cells.append(f"{json.loads((folder / 'result.json').read_text())['minutes']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def aucs(p: Any, truth: Any) -> list[str]:
    """Pooled and within an instruction."""
    return [f"{metrics.pooled_auc(p, truth):.4f}", f"{metrics.per_instruction_auc(p, truth):.4f}"]


def elsewhere_in(result: Any) -> list[str]:
    """The folders that a result was scored on beside its own."""
    return [n.removeprefix("p_") for n in result.files if n.startswith("p_")]


def beside(result: Any, reference: Any) -> str:
    """Difference of the pooled AUCs over all candidates, with its interval."""
    p, truth = result["p"], result["truth"]
    q = reference["p"][: len(p)]

    def lead(rows: NDArray[np.int64]) -> float:
        return metrics.pooled_auc(p[rows], truth[rows]) - metrics.pooled_auc(q[rows], truth[rows])

    low, high = metrics.interval(lead, len(p))
    return f"{lead(np.arange(len(p))):+.4f} ({low:+.3f} to {high:+.3f})"


def slug(name: str) -> str:
    """A folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--transfer-data", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--instructions", type=int, default=1500, help="what each trains on")
    parser.add_argument("--only", default="", help="variants whose names match")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    for name in VARIANTS:
        done = (args.out / slug(name) / "result.json").is_file()
        if re.search(args.only, name) and not done and not args.table:
            print(name, flush=True)
            run_variant(name, args.data, args.elsewhere, args.out, args.instructions)
    print(table(args.out))


if __name__ == "__main__":
    main()
