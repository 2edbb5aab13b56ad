"""Train Model-SAT: stage 1 the connector alone, stage 2 connector and LoRA on the backbone.

    python -m training.train --data DIR --out DIR                 the shipped run
    python -m training.train --data DIR --out DIR --instructions 400   a few minutes on a laptop

Stops and resumes at its last checkpoint. Leaves in --out: the adapter (peft's form),
connector.safetensors, model.json (what it belongs to, calibration, arguments), metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm import tqdm

from engine.contract.bundle import Calibration, Layout, Representation
from engine.contract.errors import ModelsatError
from training import loss, metrics
from training.base import BACKBONE, CACHE, ENCODER, load_base
from training.capability import Capabilities, capabilities, folded, new_connector
from training.data import Batch, Outcomes, batches, read_outcomes, split, tokenise
from training.model import ModelSat, TextEncoder, build
from training.pretrained import save_pretrained

Floats = NDArray[np.float32]
NEUTRAL = Calibration(1.0, 0.0)
START_SPREAD = 0.4  # standard deviation of the first log-odds
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on; stored in model.json."""

    data: str
    out: str
    backbone: str = BACKBONE
    encoder: str = ENCODER
    layers: int = 6
    layout: Layout = "candidate_last"
    representation: Representation = "accuracy_weighted"
    instructions: int = 0  # 0 = all
    batch: int = 16
    stage1_steps: int = 40
    epochs: int = 1
    rank: int = 16
    connector_lr: float = 1e-4
    backbone_lr: float = 5e-4
    across: float = 0.25
    within: float = 0.5
    checkpoint_minutes: float = 4.0
    validate_every: int = 100
    seed: int = 0


@dataclass
class Run:
    """What a step reads and changes."""

    plan: Plan
    model: ModelSat
    outcomes: Outcomes
    capability: Capabilities
    tokens: list[NDArray[np.int64]]
    optimizer: torch.optim.Optimizer
    start: Calibration = NEUTRAL
    step: int = 0


def logits(run: Run, batch: Batch, c: Floats) -> Tensor:
    """(B, M) margins, scaled and shifted so that the first predictions are near the base rate."""
    margins = run.model(
        torch.from_numpy(batch.tokens),
        torch.from_numpy(batch.lengths),
        torch.from_numpy(c),
        run.plan.layout,
    )
    return run.start.scale * margins + run.start.offset


@torch.no_grad()
def predict(run: Run, rows: NDArray[np.int64]) -> Floats:
    """(len(rows), M) margins averaged over variants, in the order of `rows`."""
    run.model.eval()
    place = {int(row): i for i, row in enumerate(rows)}
    result = np.zeros((len(rows), len(run.outcomes.candidates)), dtype=np.float32)
    variants = [run.capability.standardise(c) for c in run.capability.c]
    for batch in batches(run.tokens, rows, run.plan.batch, seed=None):
        mean = torch.stack([logits(run, batch, c) for c in variants]).mean(0).numpy()
        result[[place[int(r)] for r in batch.rows]] = mean
    return result


def learning_rates(plan: Plan, step: int, total: int) -> tuple[float, float]:
    """(connector, backbone) after `step` of `total`: stage 1, then a warm-up and cosine decay."""
    if step < plan.stage1_steps:
        return plan.connector_lr * min(1.0, (step + 1) / 10), 0.0
    done = (step - plan.stage1_steps) / max(1, total - plan.stage1_steps)
    decay = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * done))
    warm = min(1.0, (step - plan.stage1_steps + 1) / 20)
    return float(plan.connector_lr * decay), float(plan.backbone_lr * decay * warm)


def one_step(run: Run, batch: Batch, total: int) -> dict[str, float]:
    """One update; returns the losses. Randomness depends on seed and step alone, so a resumed run
    repeats what an unbroken one would have done."""
    random = np.random.default_rng([run.plan.seed, run.step])
    run.model.train()
    for group, rate in zip(
        run.optimizer.param_groups, learning_rates(run.plan, run.step, total), strict=True
    ):
        group["lr"] = rate
    c = run.capability.draw(random, run.plan.representation)
    outcomes = torch.from_numpy(run.outcomes.scores[:, batch.rows].T.copy())
    margins = logits(run, batch, c)
    value = loss.total(margins, outcomes, run.plan.across, run.plan.within)
    run.optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return {"loss": value.item(), "bce": loss.bce(margins.detach(), outcomes).item()}


def validate(run: Run, rows: NDArray[np.int64]) -> dict[str, float]:
    """AUCs and how often the favourite is chosen, on `rows`."""
    margins = predict(run, rows)
    truth = run.outcomes.scores[:, rows].T
    return {
        "pooled_auc": metrics.pooled_auc(margins, truth),
        "within_auc": metrics.within_auc(margins, truth),
        "top_share": metrics.top_share(margins),
    }


def train(plan: Plan) -> dict[str, Any]:
    """Run or resume `plan`; returns the closing report."""
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    run = prepare(plan)
    train_rows, validation_rows, test_rows = split(run.outcomes.texts)
    if plan.instructions:
        chosen = np.random.default_rng(plan.seed).permutation(len(train_rows))
        train_rows = train_rows[chosen[: plan.instructions]]
    schedule = [
        batch
        for epoch in range(plan.epochs)
        for batch in batches(run.tokens, train_rows, plan.batch, plan.seed + epoch)
    ]
    print(
        f"plan: {len(schedule)} steps of {plan.batch} instructions x"
        f" {len(run.outcomes.candidates)} candidates, {plan.layers} layers, from step {run.step}"
    )
    if run.step == 0:
        run.start = start_calibration(run, schedule[0])
    loop(run, schedule, validation_rows[:200], out)
    return finish(run, train_rows, validation_rows, test_rows, out)


def prepare(plan: Plan) -> Run:
    """Weights, data and optimiser; the state of a checkpoint where one is found."""
    torch.manual_seed(plan.seed)
    outcomes = read_outcomes(Path(plan.data))
    base = load_base(plan.backbone, CACHE, plan.layers)
    capability = capabilities(
        outcomes, TextEncoder(load_base(plan.encoder, CACHE)), plan.representation
    )
    backbone = build(base, causal=True)
    connector = new_connector(capability.c.shape[-1], backbone.get_input_embeddings().weight)
    config = LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules=TARGETS)
    model = ModelSat(get_peft_model(backbone, config), connector, base.tokenizer)
    adapter = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": list(connector.parameters())}, {"params": adapter}], weight_decay=0.01
    )
    tokens = tokenise(outcomes.texts, base.tokenizer)
    run = Run(plan, model, outcomes, capability, tokens, optimizer)
    restore(run)
    return run


def start_calibration(run: Run, batch: Batch) -> Calibration:
    """What to apply to margins so that the first predictions are the base rate, give or take
    START_SPREAD: the trial that started elsewhere lost its first 100 steps."""
    with torch.no_grad():
        margins = logits(run, batch, run.capability.standardise(run.capability.c[0]))
    rate = float(np.nanmean(run.outcomes.scores))
    scale = START_SPREAD / float(margins.std())
    return Calibration(scale, float(np.log(rate / (1 - rate))) - scale * float(margins.mean()))


def loop(run: Run, schedule: list[Batch], watched: NDArray[np.int64], out: Path) -> None:
    """Steps from run.step to the end, with checkpoints, metrics and a progress bar."""
    saved = time.monotonic()
    bar = tqdm(total=len(schedule), initial=run.step, unit="step", desc="train")
    while run.step < len(schedule):
        record = one_step(run, schedule[run.step], len(schedule))
        bar.update()
        bar.set_postfix(bce=f"{record['bce']:.3f}")
        last = run.step == len(schedule)
        if run.step % run.plan.validate_every == 0 and not last:
            record |= validate(run, watched)
            bar.write(json.dumps({"step": run.step} | record))
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": run.step} | record) + "\n")
        if last or time.monotonic() - saved > run.plan.checkpoint_minutes * 60:
            save(run)
            saved = time.monotonic()
    bar.close()


def _trained(model: ModelSat) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(run: Run) -> None:
    """Write state.pt whole or not at all."""
    path = Path(run.plan.out) / "state.pt"
    state = {
        "plan": asdict(run.plan),
        "step": run.step,
        "start": asdict(run.start),
        "weights": _trained(run.model),
        "optimizer": run.optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def restore(run: Run) -> None:
    """Continue from state.pt where there is one; it must be of the same plan."""
    path = Path(run.plan.out) / "state.pt"
    if not path.is_file():
        return
    state = torch.load(path)
    if state["plan"] != asdict(run.plan):
        raise ModelsatError(
            f"{path} is the state of another plan; give --out another folder, or remove it."
        )
    own = _trained(run.model)
    with torch.no_grad():
        for name, value in state["weights"].items():
            own[name].copy_(value)
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.start = state["step"], Calibration(**state["start"])


def finish(
    run: Run,
    train_rows: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    out: Path,
) -> dict[str, Any]:
    """Calibrate on validation rows, report on test rows, write what ships."""
    margins = predict(run, validation_rows)
    scale, offset = metrics.platt(margins, run.outcomes.scores[:, validation_rows].T)
    test = predict(run, test_rows)
    truth = run.outcomes.scores[:, test_rows].T
    constant = metrics.candidate_mean(run.outcomes.scores[:, train_rows].T, len(test_rows))
    p = 1 / (1 + np.exp(-(scale * test + offset)))
    accuracy, best = metrics.routed(p, truth)
    report = {
        "instructions_trained": len(train_rows),
        "instructions_tested": len(test_rows),
        "pooled_auc": metrics.pooled_auc(test, truth),
        "candidate_mean_pooled_auc": metrics.pooled_auc(constant, truth),
        "within_auc": metrics.within_auc(test, truth),
        "candidate_mean_within_auc": metrics.within_auc(constant, truth),
        "ece": metrics.ece(p, truth),
        "top_share": metrics.top_share(test),
        "routed_accuracy": accuracy,
        "best_single_accuracy": best,
    }
    # The fit is on top of run.start; serving applies both to plain margins at once.
    calibration = Calibration(scale * run.start.scale, scale * run.start.offset + offset)
    connector = folded(run.model.connector, run.capability.shift, run.capability.scale)
    run.model.backbone.save_pretrained(out)
    save_pretrained(out, asdict(run.plan), connector, run.capability.norms, calibration, report)
    return report


def main() -> None:
    """Parse a Plan from the command line and train it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--layout", choices=get_args(Layout), default=Plan.layout)
    parser.add_argument(
        "--representation", choices=get_args(Representation), default=Plan.representation
    )
    for name, field in Plan.__dataclass_fields__.items():
        if name not in {"data", "out", "layout", "representation"}:
            parser.add_argument(
                "--" + name.replace("_", "-"), type=type(field.default), default=field.default
            )
    report = train(Plan(**vars(parser.parse_args())))
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
