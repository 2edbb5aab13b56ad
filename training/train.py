"""Train Model-SAT: stage 1 the connector alone, stage 2 connector and backbone.

    python -m training.train --data DIR... --output-dir DIR             a pass; `make train`: two
    python -m training.train --data DIR --output-dir DIR \
        --instructions-per-epoch 400                                    minutes on a laptop
    accelerate launch -m training.train --data DIR... --output-dir DIR  several GPUs or nodes

Stops and resumes at its last checkpoint. Leaves in --output-dir: the adapter (peft's form),
connector.safetensors, model.json (what it belongs to, calibration, arguments), metrics.jsonl,
curves.png.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from tqdm import tqdm

from engine.api.errors import ModelsatError
from engine.bundle.manifest import Calibration
from engine.bundle.training_set import TrainingSet, describe, save_training_set
from engine.bundle.types import Int64Array
from engine.datasets.outcomes import fingerprint
from training.config import Plan, parse_plan
from training.data.capability import folded
from training.data.dataset import Batch, Pool, make_pools
from training.estimate import estimate
from training.evaluation import metrics
from training.evaluation.plots import plot_training
from training.model import loss
from training.model.lora import cut, write_adapter
from training.model.model import ModelSat
from training.state import PoolBuilder, Run, logits, predict, prepare, save, start_calibration
from training.weights.adapter import save_pretrained
from training.weights.base import CACHE, load_base

LEAST_LEVEL = 0.01  # for weights by level: who failed everything still counts
WATCHED = 200  # validation rows of the first folder that are scored while training


def learning_rates(plan: Plan, step: int, total: int) -> tuple[float, float]:
    """(connector, backbone) after `step` of `total`: stage 1, then a warm-up and cosine decay."""
    if step < plan.connector_warmup_steps:
        return plan.connector_lr * min(1.0, (step + 1) / 10), 0.0
    done = (step - plan.connector_warmup_steps) / max(1, total - plan.connector_warmup_steps)
    decay = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * done))
    warm = min(1.0, (step - plan.connector_warmup_steps + 1) / 20)
    return float(plan.connector_lr * decay), float(plan.backbone_lr * decay * warm)


def forward(run: Run, batch: Batch, random: np.random.Generator) -> tuple[Any, Any]:
    """(loss to go back through, binary cross-entropy for the log)."""
    pool = run.pools[batch.pool]
    share = batch.part(run.accelerator.process_index, run.accelerator.num_processes)
    shown = pool.step(random, share, run.capability, run.plan)
    margins = logits(run, pool.reworded(random, share, run.plan.reformat_prob), shown.c)
    truth = torch.from_numpy(shown.outcomes).to(margins.device)
    weights = torch.from_numpy(shown.levels.clip(LEAST_LEVEL) ** run.plan.skill_weight_exponent).to(
        margins
    )
    value = loss.total(
        margins,
        truth,
        run.plan.instruction_contrast_weight,
        run.plan.candidate_contrast_weight,
        weights,
    )
    real = len(pool.outcomes.candidates)
    return value, loss.bce(margins.detach()[:, :real], truth[:, :real])


def one_step(run: Run, batch: Batch, total: int) -> dict[str, float]:
    """One update; returns the losses. Randomness depends on seed and step alone, so a resumed run
    repeats what an unbroken one would have done."""
    random = np.random.default_rng([run.plan.seed, run.step])
    run.model.train()
    rates = learning_rates(run.plan, run.step, total)
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    value, bce = forward(run, batch, random)
    run.optimizer.zero_grad()
    run.accelerator.backward(value)
    run.accelerator.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return {"loss": value.item(), "bce": bce.item(), "pool": batch.pool}


def validate(run: Run) -> dict[str, float]:
    """AUCs and how often the favourite is chosen, on rows of the first folder."""
    pool = run.pools[0]
    rows = pool.validation[:WATCHED]
    p = expit(predict(run, pool, rows))
    truth = pool.outcomes.scores[:, rows].T
    return {
        "pooled_auc": metrics.pooled_auc(p, truth),
        "per_instruction_auc": metrics.per_instruction_auc(p, truth),
        "top_candidate_share": metrics.top_candidate_share(p),
    }


def schedule_of(run: Run) -> list[Batch]:
    """Every step's batch: each epoch goes through all folders' training rows in mixed order."""
    plan = run.plan
    steps: list[Batch] = []
    for epoch in range(plan.epochs):
        random = np.random.default_rng([plan.seed, epoch])
        work = []
        for number, pool in enumerate(run.pools):
            rows = epoch_rows(plan, number, pool, epoch)
            work += pool.batches(rows, plan.batch_size, plan.seed + epoch, number)
        steps += [work[i] for i in random.permutation(len(work))]
    return steps


def train(plan: Plan) -> dict[str, Any]:
    """Run or resume `plan`; returns the closing report."""
    return finish(fit(plan), Path(plan.output_dir))


def fit(
    plan: Plan, model_class: type[ModelSat] = ModelSat, build_pools: PoolBuilder = make_pools
) -> Run:
    """Run or resume the steps of `plan`; the last two arguments are those of `prepare`."""
    out = Path(plan.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    run = prepare(plan, model_class, build_pools)
    steps = schedule_of(run)
    if run.step == 0:
        first = next(b for b in steps if b.pool == 0)
        run.start = start_calibration(run, first)
    run.accelerator.print(estimate(run, steps, forward))
    loop(run, steps, out)
    return run


def loop(run: Run, steps: list[Batch], out: Path) -> None:
    """Steps from run.step to the end, with checkpoints, metrics and a progress bar."""
    main = run.accelerator.is_main_process
    saved = time.monotonic()
    if main:
        _forget_after(out / "metrics.jsonl", run.step)
    bar = tqdm(total=len(steps), initial=run.step, unit="step", desc="train", disable=not main)
    while run.step < len(steps):
        record: dict[str, Any] = one_step(run, steps[run.step], len(steps))
        bar.update()
        bar.set_postfix(bce=f"{record['bce']:.3f}")
        last = run.step == len(steps)
        if run.step % run.plan.validate_every == 0 and not last:
            record |= validate(run)
            bar.write(json.dumps({"step": run.step} | record))
        if main:
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": run.step} | record) + "\n")
        if last or _due(run, saved):
            save(run)
            saved = time.monotonic()
    bar.close()


def _due(run: Run, saved: float) -> bool:
    """Whether a checkpoint is due; the first process's clock decides for all."""
    due = time.monotonic() - saved > run.plan.checkpoint_minutes * 60
    if run.accelerator.num_processes == 1:
        return due
    flag = torch.tensor([int(due)], device=run.accelerator.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _forget_after(path: Path, step: int) -> None:
    """Drop what a stopped run wrote after its last checkpoint: those steps are done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text(
            "".join(x for x in lines if json.loads(x)["step"] <= step), encoding="utf-8"
        )


def calibrate(run: Run) -> Calibration:
    """Platt's scale and offset on the validation rows of every folder, on top of run.start."""
    margins, observed = [], []
    for pool in run.pools:
        found = predict(run, pool, pool.validation)
        margins.append(found.ravel())
        observed.append(pool.outcomes.scores[:, pool.validation].T.ravel())
    return Calibration(*metrics.platt(np.concatenate(margins), np.concatenate(observed)))


def finish(run: Run, out: Path) -> dict[str, Any]:
    """Cut to the adapter that ships, calibrate on validation rows, report on test rows, write."""
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return {}
    run.model = run.plain  # from here on one process works alone
    ship_backbone(run, out)
    fit = calibrate(run)
    # The fit is on top of run.start; serving applies both to plain margins at once.
    calibration = Calibration(
        fit.scale * run.start.scale, fit.scale * run.start.offset + fit.offset
    )
    report = report_of(run, fit)
    capability = run.capability
    connector = folded(run.model.connector, capability.shift, capability.scale)
    save_pretrained(out, asdict(run.plan), connector, capability.norms, calibration, report)
    save_training_set(out, training_set(run))
    plot_training(out / "metrics.jsonl", out / "curves.png")
    return report


def ship_backbone(run: Run, out: Path) -> None:
    """Write the adapter; a fully tuned backbone is cut to one of plan.lora_rank first."""
    plan = run.plan
    if plan.tuning == "lora":
        run.model.backbone.save_pretrained(out)
        return
    base = load_base(plan.backbone, CACHE, plan.layers)
    write_adapter(
        out, cut(run.model.backbone, base.arrays, plan.lora_rank), plan.lora_rank, plan.backbone
    )


def report_of(run: Run, fit: Calibration) -> dict[str, Any]:
    """The watched figures on every folder's test rows."""
    report: dict[str, Any] = {"steps": run.step, "datasets": {}}
    for number, pool in enumerate(run.pools):
        p = expit(fit.scale * predict(run, pool, pool.test) + fit.offset)
        report["datasets"][pool.outcomes.name] = {
            "instructions_tested": len(pool.test),
            "instructions_trained": len(trained_rows(run.plan, number, pool)),
            **metrics.report(p, pool.outcomes.scores[:, pool.test].T),
        }
    return report


def epoch_rows(plan: Plan, number: int, pool: Pool, epoch: int) -> Int64Array:
    """The rows of folder `number` in this epoch: where the plan limits them, each epoch goes on
    where the last one ended, so that more of them are seen in the same time."""
    order = np.random.default_rng(plan.seed).permutation(pool.train)
    count = min(plan.limit(number) or len(order), len(order))
    return order.take(np.arange(epoch * count, (epoch + 1) * count), mode="wrap")


def trained_rows(plan: Plan, number: int, pool: Pool) -> Int64Array:
    """The rows of folder `number` that the plan trains on, each once."""
    every = [epoch_rows(plan, number, pool, epoch) for epoch in range(plan.epochs)]
    return np.unique(np.concatenate(every))


def training_set(run: Run) -> TrainingSet:
    """What the bundle remembers of the instructions; those of the weights it began with too."""
    numbered = list(enumerate(run.pools))
    seen = [(pool, int(i)) for n, pool in numbered for i in trained_rows(run.plan, n, pool)]
    fitted = [(pool, int(row)) for pool in run.pools for row in pool.validation]
    before = run.weights.training_set if run.weights else None
    return describe(
        [fingerprint(pool.outcomes.texts[row]) for pool, row in seen + fitted]
        + ([] if before is None else before.fingerprints.tolist()),
        [pool.tokens[row] for pool, row in seen],
        run.model.backbone.get_input_embeddings().weight.shape[0],
    )


def main() -> None:
    """Parse a Plan from the command line and train it."""
    print(json.dumps(train(parse_plan(__doc__, kind=Plan))))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
