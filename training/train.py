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
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from tqdm import tqdm

from engine.contract.bundle import Calibration, Layout, Representation
from engine.contract.errors import ModelsatError
from training import loss, metrics
from training.capability import folded
from training.data import Batch, batches, split
from training.pretrained import save_pretrained
from training.run import Plan, Run, logits, predict, prepare, save, start_calibration


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
    p = expit(predict(run, rows)).mean(axis=0)
    truth = run.outcomes.scores[:, rows].T
    return {
        "pooled_auc": metrics.pooled_auc(p, truth),
        "within_auc": metrics.within_auc(p, truth),
        "top_share": metrics.top_share(p),
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


def loop(run: Run, schedule: list[Batch], watched: NDArray[np.int64], out: Path) -> None:
    """Steps from run.step to the end, with checkpoints, metrics and a progress bar."""
    saved = time.monotonic()
    _forget_after(out / "metrics.jsonl", run.step)
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


def _forget_after(path: Path, step: int) -> None:
    """Drop what a stopped run wrote after its last checkpoint: those steps are done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text(
            "".join(x for x in lines if json.loads(x)["step"] <= step), encoding="utf-8"
        )


def finish(
    run: Run,
    train_rows: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    out: Path,
) -> dict[str, Any]:
    """Calibrate on validation rows, report on test rows, write what ships."""
    margins = predict(run, validation_rows)
    observed = np.broadcast_to(run.outcomes.scores[:, validation_rows].T, margins.shape)
    scale, offset = metrics.platt(margins, observed)
    p = expit(scale * predict(run, test_rows) + offset).mean(axis=0)
    scores = run.outcomes.scores
    report = {
        "instructions_trained": len(train_rows),
        "instructions_tested": len(test_rows),
        **metrics.report(p, scores[:, test_rows].T, scores[:, train_rows].T),
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
