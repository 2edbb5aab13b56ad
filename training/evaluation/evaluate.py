"""How good a bundle is on real outcomes: report.json, report.md and plots.

    python -m training.evaluation.evaluate --bundle artifacts/bundle --data DIR... --out DIR

Any folder in the form of docs/explanation/architecture.md, "Data folders"; candidates' aptitude
comes from its
aptitude.json or from a part of its own scores. Scored are the instructions that the bundle was not
trained on: every row whose question was in no training or validation row. It scores through the
exported bundle, the thing that is served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS
from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.bundle.training_set import load_training_set
from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes, fingerprint, read_outcomes
from engine.inference.offline import score_outcomes
from engine.registry.catalog import costs_of
from engine.routing import tradeoff
from training.evaluation import metrics
from training.evaluation.plots import plot_dataset

FEWEST = 30  # rows below which a part has no figures of its own
ROUTING = (
    "routed_accuracy",
    "best_single_accuracy",
    "routed_gain",
    "random_accuracy",
    "oracle_accuracy",
)
COSTS = ("cost_at_95", "cost_at_100", "mix_at_95", "area")


@dataclass(frozen=True)
class Judged:
    """p, scores, costs: (B, M); scores are NaN where not measured, costs (US dollars) where no
    price is known."""

    outcomes: Outcomes
    p: FloatArray
    scores: FloatArray
    costs: FloatArray


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


def judge(bundle: Path, outcomes: Outcomes, catalog: Path | None) -> Judged:
    """Score `outcomes` through `bundle`."""
    scored = score_outcomes(bundle, outcomes)
    costs = costs_of(outcomes, scored.input_tokens, catalog, DEFAULT_OUTPUT_TOKENS)
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

    def add(name: str, figure: Callable[[Int64Array], float]) -> None:
        result.update(measured((name,), lambda r: [figure(r)], len(p)))

    add("pooled_auc", lambda r: metrics.pooled_auc(p[r], y[r]))
    add("per_instruction_auc", lambda r: metrics.nanmean(within[r]))
    add("brier", lambda r: metrics.brier(p[r], y[r]))
    add("ece", lambda r: metrics.ece(p[r], y[r]))
    return result | routing(judged) | {"top_candidate_share": metrics.top_candidate_share(p)}


def measured(
    names: Sequence[str], figures_of: Callable[[Int64Array], Sequence[float]], rows: int
) -> dict[str, Any]:
    """Each name's figure of all rows and its interval, as report.json holds them."""
    values, bounds = figures_of(np.arange(rows)), metrics.intervals(figures_of, rows)
    result: dict[str, Any] = {}
    for name, value, bound in zip(names, values, bounds, strict=True):
        result |= {name: value, f"{name}_ci": bound}
    return result


def routing(judged: Judged) -> dict[str, Any]:
    """What is got by following the probabilities, where every alternative was measured; NaN where
    that is nowhere."""
    block = tradeoff.largest_complete_subset(judged.scores)
    part = np.ix_(block.rows, block.candidates)
    p, y, costs = judged.p[part], judged.scores[part], judged.costs[part]
    if not len(y):
        return measured(ROUTING, lambda _: [float("nan")] * len(ROUTING), 0)
    chosen = y[np.arange(len(y)), p.argmax(axis=1)]
    single = y[:, int(y.mean(axis=0).argmax())]
    gains = (chosen, single, chosen - single, y, y.max(axis=1))
    result = measured(ROUTING, lambda r: [float(x[r].mean()) for x in gains], len(y))
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) > 1:
        p, y, costs = p[:, priced], y[:, priced], costs[:, priced]
        result |= measured(COSTS, lambda r: cost_figures(p[r], y[r], costs[r]), len(y))
    return result


def cost_figures(p: FloatArray, y: FloatArray, costs: FloatArray) -> list[float]:
    """COSTS, all from one curve: the least cost with 95 % and all of the best single candidate's
    accuracy, over that one's cost; with 95 % over the cheapest as accurate random mix's; the area.

    Infinite where no cost sensitivity is as accurate, so that a resample which misses counts.
    """
    points = tradeoff.curve(p, y, costs)
    accuracy, cost = tradeoff.single_candidate_baselines(y, costs)
    best = int(accuracy.argmax())
    wanted = 0.95 * float(accuracy[best])
    found = tradeoff.cheapest_at(points, wanted), tradeoff.cheapest_at(points, accuracy[best])
    least, whole = (np.inf if x is None else x.cost for x in found)
    mix = tradeoff.cheapest_mixture_cost(accuracy, cost, wanted)
    shares = [_over(least, float(cost[best])), _over(whole, float(cost[best])), _over(least, mix)]
    return [*shares, tradeoff.area_under_curve(points, cost)]


def _over(cost: float, of: float) -> float:
    """NaN over nothing: what costs no money has no share."""
    return cost / of if of else float("nan")


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
    """A table of the figures of any dataset, intervals beside them, a column for each dataset."""
    names = list(datasets)
    figures = dict.fromkeys(k for d in datasets.values() for k in d if f"{k}_ci" in d)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    sizes = [f"{datasets[n]['instructions']} x {datasets[n]['candidates']}" for n in names]
    lines.append("| instructions x candidates | " + " | ".join(sizes) + " |")
    for figure in figures:
        cells = []
        for name in names:
            value = datasets[name].get(figure)
            low, high = datasets[name].get(f"{figure}_ci", (0.0, 0.0))
            interval = f"({_shown(low, 3)} to {_shown(high, 3)})"
            cells.append("" if value is None else f"{_shown(value, 4)} {interval}")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: float, digits: int) -> str:
    """A cost is infinite where no cost sensitivity reaches the accuracy."""
    return "none" if np.isinf(value) else f"{value:.{digits}f}"


def require_distinct(folders: Iterable[Path]) -> None:
    """Raise InvalidInputError where two folders have one name, for reports go by it."""
    seen: dict[str, Path] = {}
    for folder in folders:
        if folder.name in seen:
            raise InvalidInputError(
                Violation(
                    "--data",
                    f"has {seen[folder.name]} and {folder}, both called {folder.name!r}: one's"
                    " report would replace the other's. Rename one, or evaluate them one by one"
                    " with an --out for each.",
                )
            )
        seen[folder.name] = folder


def main() -> None:
    """Parse the command line, evaluate, write the report, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--catalog", type=Path, help="prices; the bundle's own catalog by default")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    require_distinct(arguments.data)
    catalog = arguments.catalog or arguments.bundle / "zoo.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets = {}
    for folder in arguments.data:
        outcomes = unseen_rows(arguments.bundle, read_outcomes(folder))
        judged = judge(arguments.bundle, outcomes, catalog)
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
