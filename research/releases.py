"""Let candidates arrive in order of release, and route among the five best and the newest.

    python -m research.releases --bundle artifacts/bundle --data DIR... --trained DIR... --out DIR

The scenario of the paper: at each arrival the choice is among the five candidates that are best so
far and the new one, which has taken the aptitude test and nothing else. Best are those whose scores
on the training part of the folder are the farthest above their instructions' means. The routed
accuracy of each step is compared with that of the best constant of the same six, chosen on the same
training part. research/releases.json has the months. --exclude leaves candidates out, such as those
that the bundle was trained with.

Shapes: B test rows, M candidates, S steps.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import read_outcomes
from training.evaluation import metrics
from training.evaluation.evaluate import score_dataset, unseen_folders, with_training_scores
from training.evaluation.plots import plot_lines
from training.evaluation.scored import ScoredDataset

KEPT = 5  # candidates that a new one joins
MONTHS = Path(__file__).parent / "releases.json"


def release_order(names: Sequence[str], months: Mapping[str, str]) -> Int64Array:
    """Return the positions of the candidates with a known month, oldest first.

    months: regular expression -> YYYY-MM; the first that matches counts. Names decide ties.
    """
    dated = []
    for position, name in enumerate(names):
        month = next((m for pattern, m in months.items() if re.search(pattern, name)), None)
        if month is not None:
            dated.append((month, name, position))
    return np.array([position for *_, position in sorted(dated)], dtype=np.int64)


def levels(scores: FloatArray) -> FloatArray:
    """Return how far each candidate is above the others on the instructions it was measured on.

    (M,) mean of the scores (T, M) less their instructions' means: candidates that were measured on
    hard instructions alone are not worse for that. NaN for one without a score.
    """
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    means = filled.sum(axis=1) / known.sum(axis=1).clip(min=1)
    above = np.where(known, scores - means[:, None], np.nan)
    return np.array([metrics.nanmean(column) for column in above.T])


def arrivals(scored: ScoredDataset, order: Int64Array) -> list[dict[str, Any]]:
    """Return the figures of each arrival after the first KEPT candidates.

    A row counts if all six were measured on it.
    """
    training = scored.scores if scored.training_scores is None else scored.training_scores
    level = levels(training)
    steps = []
    for count in range(KEPT, len(order)):
        earlier = order[:count]
        best = earlier[np.argsort(-np.nan_to_num(level[earlier], nan=-1.0), kind="stable")[:KEPT]]
        members = np.append(best, order[count])
        steps.append(_step(scored, members))
    return steps


def _step(scored: ScoredDataset, members: Int64Array) -> dict[str, Any]:
    """Return the figures of a choice among `members`, the newest last."""
    rows = np.flatnonzero(~np.isnan(scored.scores[:, members]).any(axis=1))
    y, choice = scored.scores[np.ix_(rows, members)], scored.p[np.ix_(rows, members)].argmax(axis=1)
    constant = scored.best_constant(members)
    names = [scored.outcomes.candidates[i] for i in members]
    gains: FloatArray = y[np.arange(len(rows)), choice] - y[:, constant]
    newest = len(members) - 1
    return {
        "newest": names[newest],
        "best_constant": names[constant],
        "rows": len(rows),
        "routed_accuracy": metrics.nanmean(y[np.arange(len(rows)), choice]),
        "best_constant_accuracy": metrics.nanmean(y[:, constant]),
        "gain": metrics.nanmean(gains),
        "gain_ci": metrics.interval(lambda r: metrics.nanmean(gains[r]), len(rows)),
        "share_of_newest": float((choice == newest).mean()) if len(rows) else float("nan"),
    }


def summary(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all steps have in common; share_when_best is the newest one's mean share where
    it is the best constant, share_when_not where it is not."""
    gains = np.array([step["gain"] for step in steps])
    best = np.array([step["newest"] == step["best_constant"] for step in steps])
    share = np.array([step["share_of_newest"] for step in steps])
    return {
        "steps": len(steps),
        "mean_gain": metrics.nanmean(gains),
        "worst_gain": float(np.nanmin(gains)),
        "steps_below_by_half_a_point": int((gains < -0.005).sum()),
        "share_when_best": metrics.nanmean(share[best]),
        "share_when_not": metrics.nanmean(share[~best]),
    }


def main() -> None:
    """Run every folder that releases.json has months for; write releases.json and plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"), help="bundle")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data folders")
    text = "more data folders that the bundle was trained on"
    parser.add_argument("--trained", type=Path, nargs="+", default=[], help=text)
    text = "leave out candidates whose name matches this regular expression"
    parser.add_argument("--exclude", default="", help=text)
    parser.add_argument("--out", type=Path, required=True, help="folder for report and plots")
    arguments = parser.parse_args()
    months = json.loads(MONTHS.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    folders = [read_outcomes(folder) for folder in arguments.data]
    trained = [read_outcomes(folder) for folder in arguments.trained]
    report: dict[str, Any] = {}
    for whole, left in zip(
        folders, unseen_folders(arguments.bundle, folders, trained), strict=True
    ):
        scored = with_training_scores(score_dataset(arguments.bundle, left, None), whole)
        order = release_order(left.candidates, months[whole.name])
        if arguments.exclude:
            pattern = re.compile(arguments.exclude)
            order = np.array([i for i in order if not pattern.search(left.candidates[i])])
        steps = arrivals(scored, order)
        report[whole.name] = summary(steps) | {"arrivals": steps}
        lines = {
            "routed": [step["routed_accuracy"] for step in steps],
            "best constant of the six": [step["best_constant_accuracy"] for step in steps],
        }
        labels = [step["newest"] for step in steps]
        plot_lines(lines, labels, "accuracy", arguments.out / f"{whole.name}-releases.png")
        print(whole.name, json.dumps(summary(steps)))
    text = json.dumps(report, indent=1)
    (arguments.out / "releases.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
