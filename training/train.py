"""Train Model-SAT: first the connector alone, then connector and backbone.

    python -m training.train --data DIR... --output-dir DIR             a pass; `make train`: two
    python -m training.train --data DIR --output-dir DIR \
        --instructions-per-epoch 400                                    minutes on a laptop
    accelerate launch -m training.train --data DIR... --output-dir DIR  several GPUs or nodes

A run resumes at its last checkpoint. --output-dir gets the adapter (in peft's format),
connector.safetensors, model.json (base models, calibration, settings, report), metrics.jsonl and
curves.png.

Shapes: B instructions, M candidates.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
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
from training.config import TrainingConfig, parse_config
from training.data.capability import fuse_standardization
from training.data.dataset import Batch, Dataset, build_datasets
from training.estimate import estimate
from training.evaluation import metrics
from training.evaluation.plots import plot_training
from training.model import loss
from training.model.lora import truncate_to_rank, write_adapter
from training.model.model import ModelSat
from training.state import (
    DatasetBuilder,
    TrainState,
    initial_calibration,
    logits,
    predict,
    prepare,
    save,
)
from training.weights.adapter import save_pretrained
from training.weights.base import CACHE, load_base

MIN_SKILL = 0.01  # of a candidate that failed everything, so that it still has a weight
VALIDATION_ROWS = 200  # of the first folder, scored while training


def learning_rates(config: TrainingConfig, step: int, total: int) -> tuple[float, float]:
    """Learning rates (connector, backbone) at `step` of `total`.

    The backbone waits for connector_warmup_steps. Then both follow a cosine decay to 5 %, the
    backbone after a linear warm-up of 20 steps.
    """
    if step < config.connector_warmup_steps:
        return config.connector_lr * min(1.0, (step + 1) / 10), 0.0
    done = (step - config.connector_warmup_steps) / max(1, total - config.connector_warmup_steps)
    decay = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * done))
    warm = min(1.0, (step - config.connector_warmup_steps + 1) / 20)
    return float(config.connector_lr * decay), float(config.backbone_lr * decay * warm)


def forward(run: TrainState, batch: Batch, random: np.random.Generator) -> tuple[Any, Any]:
    """Compute the loss of this process's part of `batch`.

    Returns:
        (loss to differentiate, binary cross-entropy over the real candidates for the log).
    """
    config, dataset = run.config, run.datasets[batch.dataset]
    part = batch.part(run.accelerator.process_index, run.accelerator.num_processes)
    inputs = dataset.step(random, part, run.capability, config)
    margins = logits(run, dataset.reformatted(random, part, config.reformat_prob), inputs.c)
    outcomes = torch.from_numpy(inputs.outcomes).to(margins.device)
    weights = inputs.skills.clip(MIN_SKILL) ** config.skill_weight_exponent
    value = loss.total(
        margins,
        outcomes,
        config.instruction_contrast_weight,
        config.candidate_contrast_weight,
        torch.from_numpy(weights).to(margins),
        bce_weight=config.bce_weight,
        rivals=config.contrast_rivals,
    )
    real = len(dataset.outcomes.candidates)
    return value, loss.bce(margins.detach()[:, :real], outcomes[:, :real])


def one_step(run: TrainState, batch: Batch, total: int) -> dict[str, float]:
    """Update the weights once; returns the losses.

    Randomness depends on seed and step alone, so a resumed run repeats what an uninterrupted one
    would have done.
    """
    random = np.random.default_rng([run.config.seed, run.step])
    run.model.train()
    rates = learning_rates(run.config, run.step, total)
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    value, bce = forward(run, batch, random)
    run.optimizer.zero_grad()
    run.accelerator.backward(value)
    run.accelerator.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return {"loss": value.item(), "bce": bce.item(), "dataset": batch.dataset}


def validate(run: TrainState) -> dict[str, float]:
    """Measure AUCs and the share of the top candidate on validation rows of the first folder."""
    dataset = run.datasets[0]
    rows = dataset.validation[:VALIDATION_ROWS]
    p = expit(predict(run, dataset, rows))
    outcomes = dataset.outcomes.scores[:, rows].T
    return {
        "pooled_auc": metrics.pooled_auc(p, outcomes),
        "per_instruction_auc": metrics.per_instruction_auc(p, outcomes),
        "top_candidate_share": metrics.top_candidate_share(p),
    }


def schedule_of(run: TrainState) -> list[Batch]:
    """List the batch of every step; each epoch goes through all folders' rows in mixed order."""
    config = run.config
    steps: list[Batch] = []
    for epoch in range(config.epochs):
        random = np.random.default_rng([config.seed, epoch])
        batches = []
        for number, dataset in enumerate(run.datasets):
            rows = epoch_rows(config, number, dataset, epoch)
            batches += dataset.batches(rows, config.batch_size, config.seed + epoch, number)
        steps += [batches[i] for i in random.permutation(len(batches))]
    if config.connector_warmup_data == "first":
        early = [i for i, batch in enumerate(steps) if batch.dataset == 0]
        early = early[: config.connector_warmup_steps]
        later = sorted(set(range(len(steps))) - set(early))
        steps = [steps[i] for i in (*early, *later)]
    return steps


def train(config: TrainingConfig) -> dict[str, Any]:
    """Start or resume a run, and finish it; returns the report of the test rows.

    Example:
        train(TrainingConfig(data=("data/mmlu_pro_cot",), output_dir="out"))
    """
    return finish(fit(config), Path(config.output_dir))


def fit(
    config: TrainingConfig,
    model_class: type[ModelSat] = ModelSat,
    build: DatasetBuilder = build_datasets,
) -> TrainState:
    """Start or resume a run and take its steps; model_class and build are those of `prepare`."""
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    run = prepare(config, model_class, build)
    steps = schedule_of(run)
    if run.step == 0:
        first = next(b for b in steps if b.dataset == 0)
        run.start = initial_calibration(run, first)
    run.accelerator.print(estimate(run, steps, forward))
    loop(run, steps, out)
    return run


def loop(run: TrainState, steps: list[Batch], out: Path) -> None:
    """Take the steps from run.step to the end, with checkpoints, metrics and a progress bar."""
    main = run.accelerator.is_main_process
    saved = time.monotonic()
    if main:
        _drop_metrics_after(out / "metrics.jsonl", run.step)
    bar = tqdm(total=len(steps), initial=run.step, unit="step", desc="train", disable=not main)
    while run.step < len(steps):
        record: dict[str, Any] = one_step(run, steps[run.step], len(steps))
        bar.update()
        bar.set_postfix(bce=f"{record['bce']:.3f}")
        last = run.step == len(steps)
        if run.step % run.config.validate_every == 0 and not last:
            record |= validate(run)
            bar.write(json.dumps({"step": run.step} | record))
        if main:
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": run.step} | record) + "\n")
        if last or _checkpoint_due(run, saved):
            save(run)
            saved = time.monotonic()
    bar.close()


def _checkpoint_due(run: TrainState, saved: float) -> bool:
    """True if a checkpoint is due; the clock of the first process decides for all."""
    due = time.monotonic() - saved > run.config.checkpoint_minutes * 60
    if run.accelerator.num_processes == 1:
        return due
    flag = torch.tensor([int(due)], device=run.accelerator.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _drop_metrics_after(path: Path, step: int) -> None:
    """Drop lines that a stopped run wrote after its last checkpoint: those steps are repeated."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text(
            "".join(x for x in lines if json.loads(x)["step"] <= step), encoding="utf-8"
        )


def calibrate(run: TrainState) -> Calibration:
    """Fit Platt's scale and offset on the validation rows of every folder, on top of run.start."""
    margins, outcomes = [], []
    for dataset in run.datasets:
        margins.append(predict(run, dataset, dataset.validation).ravel())
        outcomes.append(dataset.outcomes.scores[:, dataset.validation].T.ravel())
    return Calibration(*metrics.platt(np.concatenate(margins), np.concatenate(outcomes)))


def finish(run: TrainState, out: Path) -> dict[str, Any]:
    """Write what ships: the adapter, the calibration of validation rows, the report of test rows.

    Returns:
        The report; empty in every process but the first.
    """
    run.accelerator.wait_for_everyone()
    if not run.accelerator.is_main_process:
        return {}
    run.model = run.plain  # from here on one process works alone
    ship_backbone(run, out)
    fitted = calibrate(run)
    # Fitted on top of run.start; serving applies both to plain margins at once.
    calibration = Calibration(
        fitted.scale * run.start.scale, fitted.scale * run.start.offset + fitted.offset
    )
    report = report_of(run, fitted)
    capability = run.capability
    connector = fuse_standardization(run.model.connector, capability.shift, capability.scale)
    save_pretrained(out, asdict(run.config), connector, capability.norms, calibration, report)
    save_training_set(out, training_set(run))
    plot_training(out / "metrics.jsonl", out / "curves.png")
    return report


def ship_backbone(run: TrainState, out: Path) -> None:
    """Write the adapter; a fully tuned backbone is first truncated to one of lora_rank, or of the
    rank of the weights that the run started from if that is higher."""
    config = run.config
    if config.tuning == "lora":
        run.model.backbone.save_pretrained(out)
        return
    base = load_base(config.backbone, CACHE, config.layers)
    rank = max(config.lora_rank, run.init.rank if run.init else 0)
    factors = truncate_to_rank(run.model.backbone, base.arrays, rank)
    write_adapter(out, factors, rank, config.backbone)


def report_of(run: TrainState, calibration: Calibration) -> dict[str, Any]:
    """Measure the metrics of every folder's test rows."""
    report: dict[str, Any] = {"steps": run.step, "datasets": {}}
    for number, dataset in enumerate(run.datasets):
        log_odds = predict(run, dataset, dataset.test)
        p = expit(calibration.scale * log_odds + calibration.offset)
        report["datasets"][dataset.outcomes.name] = {
            "instructions_tested": len(dataset.test),
            "instructions_trained": len(trained_rows(run.config, number, dataset)),
            **metrics.report(p, dataset.outcomes.scores[:, dataset.test].T),
        }
    return report


def epoch_rows(config: TrainingConfig, number: int, dataset: Dataset, epoch: int) -> Int64Array:
    """Choose the rows of folder `number` in this epoch.

    If the settings limit them, each epoch continues where the last one ended, so that more rows
    are seen in the same time.
    """
    order = np.random.default_rng(config.seed).permutation(dataset.train)
    count = min(config.limit(number) or len(order), len(order))
    return order.take(np.arange(epoch * count, (epoch + 1) * count), mode="wrap")


def trained_rows(config: TrainingConfig, number: int, dataset: Dataset) -> Int64Array:
    """List the rows of folder `number` that the run trains on, each once."""
    every = [epoch_rows(config, number, dataset, epoch) for epoch in range(config.epochs)]
    return np.unique(np.concatenate(every))


def training_set(run: TrainState) -> TrainingSet:
    """Describe the instructions of this run and of the weights it started from.

    Their fingerprints let evaluation leave them out; their token frequencies give the
    out-of-distribution score.
    """
    trained = [
        (dataset, int(row))
        for number, dataset in enumerate(run.datasets)
        for row in trained_rows(run.config, number, dataset)
    ]
    # A near-duplicate of a trained question tells no more than the question itself would.
    others = [
        (dataset, int(row))
        for dataset in run.datasets
        for row in (*dataset.validation, *dataset.near_duplicates)
    ]
    before = run.init.training_set if run.init else None
    known = describe(
        [fingerprint(dataset.outcomes.texts[row]) for dataset, row in trained + others]
        + ([] if before is None else before.fingerprints.tolist()),
        [dataset.tokens[row] for dataset, row in trained],
        run.model.backbone.get_input_embeddings().weight.shape[0],
    )
    # That of the weights before is near enough until training.instruction_space computes it again.
    return replace(known, instruction_space=None if before is None else before.instruction_space)


def main() -> None:
    """Parse the settings from the command line and train."""
    print(json.dumps(train(parse_config(__doc__, kind=TrainingConfig))))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
