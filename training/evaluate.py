"""How good a bundle is on real outcomes: report.json, report.md and plots.

    python -m training.evaluate --bundle artifacts/bundle --data DIR... --out DIR

Any folder in the form of docs/architecture.md, "Data folders"; candidates' aptitude comes from its
aptitude.json or from a part of its own scores. Scored are the instructions that the bundle was not
trained on: of a folder that training used, the held-out tenth; of another, every row whose
question was in no training row. It scores through the exported bundle, the thing that is served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tradeoff
from engine.contract.candidate import DEFAULT_ANSWER_TOKENS
from engine.contract.errors import InvalidInputError, ModelsatError, Violation
from engine.contract.outcomes import Outcomes, fingerprint, read_outcomes
from engine.contract.training_set import load_training_set
from engine.registry.prices import costs_of
from engine.scoring.offline import score_outcomes
from training import metrics
from training.plots import plot_dataset

Floats = NDArray[np.floating]
FEWEST = 30  # rows below which a part has no figures of its own


@dataclass(frozen=True)
class Judged:
    """p, scores, costs: (B, M); scores are NaN where not measured, costs (US dollars) where no
    price is known."""

    outcomes: Outcomes
    p: Floats
    scores: Floats
    costs: Floats


def unseen_rows(bundle: Path, outcomes: Outcomes) -> Outcomes:
    """The rows whose question the bundle was not trained on."""
    known = load_training_set(bundle)
    if known is None:
        return outcomes
    found = np.array([fingerprint(t) for t in outcomes.texts], dtype=np.uint32)
    rows = np.flatnonzero(~np.isin(found, known.fingerprints))
    if not len(rows):
        raise InvalidInputError(
            Violation(outcomes.name, "the bundle was trained on every question of it.")
        )
    return outcomes.take(rows)


def judge(bundle: Path, outcomes: Outcomes, zoo: Path | None) -> Judged:
    """Score `outcomes` through `bundle`."""
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, zoo, DEFAULT_ANSWER_TOKENS)
    return Judged(outcomes, scored.p, outcomes.scores.T, costs)


def figures(judged: Judged) -> dict[str, Any]:
    """Every figure of report.json with its 95 % bootstrap interval."""
    p, y = judged.p, judged.scores
    within = metrics.within_aucs(p, y)
    result: dict[str, Any] = {
        "instructions": len(p),
        "candidates": p.shape[1],
        "outcomes": int((~np.isnan(y)).sum()),
    }

    def add(name: str, figure: Callable[[NDArray[np.int64]], float], rows: int) -> None:
        result[name] = figure(np.arange(rows))
        result[f"{name}_ci"] = metrics.interval(figure, rows)

    add("pooled_auc", lambda r: metrics.pooled_auc(p[r], y[r]), len(p))
    add("within_auc", lambda r: float(np.nanmean(within[r])), len(p))
    add("brier", lambda r: metrics.brier(p[r], y[r]), len(p))
    add("ece", lambda r: metrics.ece(p[r], y[r]), len(p))
    add_routing(add, judged)
    result["top_share"] = metrics.top_share(p)
    return result


def add_routing(add: Callable[..., None], judged: Judged) -> None:
    """What is got by following the probabilities, where every alternative was measured."""
    block = tradeoff.full_block(judged.scores)
    part = np.ix_(block.rows, block.candidates)
    p, y, costs = judged.p[part], judged.scores[part], judged.costs[part]
    chosen = y[np.arange(len(y)), p.argmax(axis=1)]
    single = int(y.mean(axis=0).argmax())
    add("routed_accuracy", lambda r: float(chosen[r].mean()), len(y))
    add("best_single_accuracy", lambda r: float(y[r, single].mean()), len(y))
    add("routed_gain", lambda r: float((chosen - y[:, single])[r].mean()), len(y))
    add("random_accuracy", lambda r: float(y[r].mean()), len(y))
    add("oracle_accuracy", lambda r: float(y[r].max(axis=1).mean()), len(y))
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) > 1:
        p, y, costs = p[:, priced], y[:, priced], costs[:, priced]
        for name, share in (("cost_at_95", 0.95), ("cost_at_100", 1.0)):
            add(name, lambda r, s=share: cost_share(p[r], y[r], costs[r], s), len(y))
        add("mix_at_95", lambda r: mix_share(p[r], y[r], costs[r], 0.95), len(y))
        points = tradeoff.curve(p, y, costs)
        add("area", lambda _: tradeoff.area(points, costs.mean(axis=0)), 1)


def cost_share(p: Floats, y: Floats, costs: Floats, share: float) -> float:
    """Least cost with `share` of the best single candidate's accuracy, over that one's cost."""
    accuracy, cost = tradeoff.singles(y, costs)
    best = int(accuracy.argmax())
    found = tradeoff.cheapest_at(tradeoff.curve(p, y, costs), share * accuracy[best])
    return float("nan") if found is None else found.cost / float(cost[best])


def mix_share(p: Floats, y: Floats, costs: Floats, share: float) -> float:
    """The same cost, over that of the cheapest random mix of two candidates as accurate."""
    accuracy, cost = tradeoff.singles(y, costs)
    wanted = share * float(accuracy.max())
    found = tradeoff.cheapest_at(tradeoff.curve(p, y, costs), wanted)
    return float("nan") if found is None else found.cost / tradeoff.mix_cost(accuracy, cost, wanted)


def parts(judged: Judged) -> dict[str, dict[str, dict[str, float]]]:
    """The main figures by benchmark and by candidate."""
    names = np.array(judged.outcomes.benchmarks)
    by_benchmark = {
        str(name): metrics.report(judged.p[names == name], judged.scores[names == name])
        for name in sorted(set(names))
        if (names == name).sum() >= FEWEST
    }
    by_candidate = {}
    for i, name in enumerate(judged.outcomes.candidates):
        p, y = judged.p[:, [i]], judged.scores[:, [i]]
        by_candidate[name] = {
            "outcomes": int((~np.isnan(y)).sum()),
            "accuracy": float(np.nanmean(y)),
            "mean_p": float(p[~np.isnan(y)].mean()),
            "auc": metrics.pooled_auc(p, y),
        }
    return {"benchmarks": by_benchmark, "by_candidate": by_candidate}


def as_markdown(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the figures, intervals beside them, a column for each dataset."""
    names = list(datasets)
    figures = [
        k for k in next(iter(datasets.values())) if f"{k}_ci" in next(iter(datasets.values()))
    ]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    sizes = [f"{datasets[n]['instructions']} x {datasets[n]['candidates']}" for n in names]
    lines.append("| instructions x candidates | " + " | ".join(sizes) + " |")
    for figure in figures:
        cells = []
        for name in names:
            value = datasets[name].get(figure)
            low, high = datasets[name].get(f"{figure}_ci", (0.0, 0.0))
            cells.append("" if value is None else f"{value:.4f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, evaluate, write the report, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--zoo", type=Path, default=Path("pretrained/zoo.json"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets = {}
    for folder in arguments.data:
        outcomes = unseen_rows(arguments.bundle, read_outcomes(folder))
        judged = judge(arguments.bundle, outcomes, arguments.zoo)
        datasets[folder.name] = figures(judged) | parts(judged)
        plot_dataset(judged.p, judged.scores, judged.costs, arguments.out / folder.name)
    report = {"datasets": datasets}
    text = json.dumps(report, indent=1, allow_nan=True)
    (arguments.out / "report.json").write_text(text + "\n", encoding="utf-8")
    table = as_markdown(datasets)
    (arguments.out / "report.md").write_text(table, encoding="utf-8")
    print(table)
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
