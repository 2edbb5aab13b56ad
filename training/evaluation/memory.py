"""Measure what remembered outcomes do to the probabilities of a bundle.

Some instructions of a data folder are remembered with their outcomes, others are routed. What comes
back depends on the feedback: all outcomes of an instruction ("comparisons"), that of the candidate
with the highest probability ("chosen"), or that with a tenth drawn at random ("explored").

Shapes: B instructions, M candidates, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.adaptation.fit import fit
from engine.adaptation.fitted import FittedAdaptation
from engine.adaptation.outcome_matrix import PROVENANCES, OutcomeMatrix
from engine.adaptation.regression import log_loss
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, FloatArray, Int64Array
from engine.inference.backend import log_odds
from engine.routing import tradeoff
from engine.routing.decision import MIN_COVERAGE
from engine.routing.guard import Evidence, first_above_bound
from training.evaluation import metrics

Feedback = Literal["comparisons", "explored", "chosen"]
EXPLORED_SHARE = 0.1
MAX_REMEMBERED_SHARE = 0.6
MAX_ROUTED = 2500
STRONGEST, MIN_GAP, SHARES = 6, 0.05, 20  # of apgr


@dataclass(frozen=True, eq=False)
class MemoryTrial:
    """What is measured. p, scores, costs: (B, M), NaN where unknown. embeddings: (B, D). groups:
    (B,) number of the folder, where several have one memory; None if there is one folder."""

    p: FloatArray
    scores: FloatArray
    costs: FloatArray
    embeddings: Float32Array
    space: InstructionSpace
    feedback: Feedback = "comparisons"
    confidence: float = 0.0
    groups: Int64Array | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return M candidate IDs, in the order of the columns."""
        return tuple(f"c{i:04d}" for i in range(self.p.shape[1]))


def measure_memory(
    trial: MemoryTrial, sizes: Sequence[int], draws: int = 5
) -> dict[str, dict[str, Any]]:
    """Measure each size of memory: size -> figures, means over draws with their range under _range.

    A figure NAME_before is of the weights alone, on the same instructions. Sizes that leave under
    40 % of the instructions to route are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for size in sizes:
        if size > MAX_REMEMBERED_SHARE * len(trial.p):
            continue
        rows = [_one_draw(trial, size, draw) for draw in range(draws)]
        figures: dict[str, Any] = {}
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            figures[name] = metrics.nanmean(values)
            figures[f"{name}_range"] = [float(np.nanmin(values)), float(np.nanmax(values))]
        found[str(size)] = figures
    return found


def _one_draw(trial: MemoryTrial, size: int, draw: int) -> dict[str, float]:
    random = np.random.default_rng(draw)
    order = random.permutation(len(trial.p))
    remembered, routed = order[:size], order[size : size + MAX_ROUTED]
    before, y = trial.p[routed], trial.scores[routed]
    figures = {f"{k}_before": v for k, v in _figures(before, y).items()}
    after, evidence, active = before, None, False
    if size:
        adaptation = fit(remember(trial, remembered, random), trial.space)
        active = adaptation.active
        if adaptation.decides:
            after, evidence = correct(trial, adaptation, routed)
    figures |= _figures(after, y) | {"active": float(active)}
    groups = np.zeros(len(trial.p), dtype=np.int64) if trial.groups is None else trial.groups
    parts, sizes = [], []
    for group in np.unique(groups[routed]):
        mine = groups[routed] == group
        known = trial.scores[remembered[groups[remembered] == group]]
        chosen = None if evidence is None else (evidence.mean_p, evidence.standard_error[mine])
        found = _routing(
            before[mine], after[mine], y[mine], trial.costs[routed][mine], known, chosen, trial
        )
        if found:
            parts.append(found)
            sizes.append(mine.sum())
    for name in sorted({name for part in parts for name in part}):
        values = np.array([part.get(name, np.nan) for part in parts])
        has, weights = ~np.isnan(values), np.array(sizes)
        if has.any():
            figures[name] = float(np.average(values[has], weights=weights[has]))
    return figures


def _routing(
    before: FloatArray,
    after: FloatArray,
    y: FloatArray,
    costs: FloatArray,
    known: FloatArray,
    evidence: tuple[FloatArray, FloatArray] | None,
    trial: MemoryTrial,
) -> dict[str, float]:
    """Return the figures of routing one folder's instructions, over its largest complete part.

    before, after, y, costs: (R, M) of the routed instructions. known: (N, M) scores of the
    remembered ones. evidence: mean p (M,) and standard errors (R, M).
    """
    block = tradeoff.largest_complete_subset(y)
    if not len(block.rows):
        return {}
    part = np.ix_(block.rows, block.candidates)
    before, after, y, costs = before[part], after[part], y[part], costs[part]
    accuracy = _accuracy(y, after.argmax(axis=1))
    guarded = accuracy
    if evidence is not None and trial.confidence:
        means, errors = evidence[0][block.candidates], evidence[1][part]
        defaults = before if np.isnan(means).all() else np.broadcast_to(means, before.shape)
        guarded = _accuracy(y, guarded_choices(after, defaults, errors, trial.confidence))
    figures = {
        "routed_accuracy_before": _accuracy(y, before.argmax(axis=1)),
        "routed_accuracy": accuracy,
        "guarded_accuracy": guarded,
        "apgr_before": apgr(before, y),
        "apgr": apgr(after, y),
    }
    known = known[:, block.candidates]
    if (~np.isnan(known)).any(axis=0).all():
        remembered = np.nanmean(known, axis=0)
        # Few instructions leave several candidates equal. Which of them stands first says nothing.
        constant = np.isclose(remembered, remembered.max())
        constant_accuracy = float(y[:, constant].mean())
        figures |= {
            "routed_gain": accuracy - constant_accuracy,
            "guarded_gain": guarded - constant_accuracy,
        }
        if not np.isnan(costs).any() and len(block.candidates) > 1:
            points = tradeoff.curve(after, y, costs)
            for share in (0.95, 1.0):
                point = tradeoff.cheapest_at(points, share * constant_accuracy)
                cost = np.inf if point is None else point.cost
                figures[f"cost_at_{share:.0%}"] = cost / float(costs[:, constant].mean())
    return figures


def _figures(p: FloatArray, y: FloatArray) -> dict[str, float]:
    known = ~np.isnan(y)
    loss = log_loss(y[known].astype(np.float64), p[known].astype(np.float64))
    return {
        "pooled_auc": metrics.pooled_auc(p, y),
        "log_loss": float(loss.mean()),
        "ece": metrics.ece(p, y),
    }


def _accuracy(y: FloatArray, choices: Int64Array) -> float:
    return float(y[np.arange(len(y)), choices].mean())


def remember(trial: MemoryTrial, rows: Int64Array, random: np.random.Generator) -> OutcomeMatrix:
    """Return what a server would remember of these instructions with the trial's feedback."""
    p, scores = trial.p[rows], trial.scores[rows]
    provenance = np.where(np.isnan(scores), -1, PROVENANCES.index("comparison"))
    if trial.feedback != "comparisons":
        index = np.arange(len(rows))
        known = ~np.isnan(scores)
        choice = np.where(known, p, -1.0).argmax(axis=1)
        share = EXPLORED_SHARE if trial.feedback == "explored" else 0.0
        drawn = random.random(len(rows)) < share
        other = np.where(known, random.random(p.shape), -1).argmax(axis=1)
        choice = np.where(drawn, other, choice)
        kept = np.full_like(scores, np.nan)
        kept[index, choice] = scores[index, choice]
        provenance = np.where(np.isnan(kept), -1, PROVENANCES.index("chosen"))
        provenance[drawn, other[drawn]] = PROVENANCES.index("explored")
        scores = kept
    return OutcomeMatrix(
        embeddings=trial.embeddings[rows],
        candidates=trial.names,
        logits=log_odds(p.astype(np.float32)),
        scores=scores.astype(np.float32),
        provenance=provenance.astype(np.int8),
        propensity=np.ones(scores.shape, dtype=np.float32),
        principals=("",) * len(rows),
        recorded_at=np.arange(len(rows), dtype=np.float64),
    )


def correct(
    trial: MemoryTrial, adaptation: FittedAdaptation, rows: Int64Array
) -> tuple[FloatArray, Evidence]:
    """Correct the probabilities of these instructions: (R, M), and their standard errors."""
    found = [
        adaptation.correct(trial.embeddings[row], trial.p[row].astype(np.float32), trial.names)
        for row in rows
    ]
    errors = np.stack([scores.standard_error for scores in found])
    # As served: far from what is remembered there is no guard.
    errors[[scores.coverage < MIN_COVERAGE for scores in found]] = 0
    p = np.stack([scores.p for scores in found])
    return p, Evidence(adaptation.mean_probabilities(trial.names), errors)


def guarded_choices(
    p: FloatArray, means: FloatArray, errors: FloatArray, confidence: float
) -> Int64Array:
    """Return the guarded choice for each row of p (B, M); see engine.routing.guard.

    means: (B, M), whose highest is the default.
    """
    choices = []
    for row, mean, error in zip(p, means, errors, strict=True):
        default, order = int(mean.argmax()), np.argsort(-row, kind="stable").tolist()
        gains = (row - row[default]).tolist()
        evidence = Evidence(mean, error)
        errors_of_gains = evidence.errors_of_differences(default)
        choices.append(first_above_bound(order, gains, errors_of_gains, default, confidence))
    return np.array(choices)


def apgr(p: FloatArray, y: FloatArray) -> float:
    """Return the average performance gap recovered (Ong et al., RouteLLM, 2024).

    The share s of instructions with the largest p_strong - p_weak goes to the strong candidate; the
    recovered part of the gap is averaged over s, then over pairs of one of the six strongest and
    one that is weaker by 5 points or more. A random order gets .5. NaN if there is no such pair.
    """
    mean, found = y.mean(axis=0), []
    at = np.round(np.linspace(0, 1, SHARES + 1)[1:-1] * len(y)).astype(int)
    for strong in np.argsort(-mean)[:STRONGEST]:
        for weak in np.flatnonzero(mean < mean[strong] - MIN_GAP):
            order = np.argsort(-(p[:, strong] - p[:, weak]), kind="stable")
            gain = np.concatenate([[0.0], np.cumsum((y[:, strong] - y[:, weak])[order])])
            found.append(float(np.mean(gain[at] / gain[-1])))
    return float(np.mean(found)) if found else float("nan")


def mixture(trials: Sequence[MemoryTrial]) -> MemoryTrial:
    """Return the folders of `trials` as one, whose candidates have nothing in common."""
    height, width = sum(len(t.p) for t in trials), sum(t.p.shape[1] for t in trials)
    p, scores, costs = (np.full((height, width), np.nan) for _ in range(3))
    row = column = 0
    for trial in trials:
        at = slice(row, row + len(trial.p)), slice(column, column + trial.p.shape[1])
        p[at], scores[at], costs[at] = trial.p, trial.scores, trial.costs
        row, column = at[0].stop, at[1].stop
    first = trials[0]
    return MemoryTrial(
        p,
        scores,
        costs,
        np.concatenate([t.embeddings for t in trials]),
        first.space,
        first.feedback,
        first.confidence,
        np.repeat(np.arange(len(trials)), [len(t.p) for t in trials]),
    )
