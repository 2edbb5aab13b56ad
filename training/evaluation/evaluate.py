"""Evaluate a bundle on real outcomes; writes report.json, report.md and plots.

    python -m training.evaluation.evaluate --bundle artifacts/bundle --data DIR... --out DIR

Data folders have the form of docs/reference/data-folders.md. Candidates' aptitude
comes from aptitude.json, or from a part of their own scores. Instructions whose question the bundle
was trained or calibrated on are left out, and so are near-duplicates of them and of aptitude items
(training/data/near_duplicates.py). It scores through the exported bundle, the thing that is served.
Routed accuracy is reported with that of the best constant: the candidate with the highest mean
score on the training part of the folder.

Shapes: B instructions, M candidates, T training instructions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from engine.api.candidate import DEFAULT_OUTPUT_TOKENS
from engine.api.errors import InvalidInputError, ModelsatError, Violation
from engine.bundle.arrays import load_arrays
from engine.bundle.training_set import load_training_set
from engine.bundle.types import FloatArray, Int64Array
from engine.datasets.outcomes import Outcomes, drop_candidates, fingerprint, read_outcomes, split
from engine.registry.catalog import costs_of
from engine.routing import tradeoff
from engine.serving.settings import Settings
from training.data.near_duplicates import near_duplicates
from training.evaluation import metrics
from training.evaluation.memory import Feedback, MemoryTrial, measure_memory, mixture
from training.evaluation.mixture import describe_worst, measure_mixture
from training.evaluation.plots import plot_dataset, plot_gains, plot_memory
from training.evaluation.score_cache import score_once
from training.evaluation.scored import MIN_ROWS, ScoredDataset

ROUTING = (
    "routed_accuracy",
    "best_single_accuracy",
    "routed_gain",
    "random_accuracy",
    "oracle_accuracy",
    "best_constant_accuracy",
    "gain_over_constant",
)
COSTS = ("cost_at_95", "cost_at_100", "mix_at_95", "area")


def unseen_folders(
    bundle: Path,
    folders: Sequence[Outcomes],
    trained: Sequence[Outcomes] = (),
    *,
    near: bool = True,
) -> list[Outcomes]:
    """Leave out of every folder what the bundle was trained on.

    That is equal questions, and near-duplicates of a trained row or an aptitude item of any of the
    folders.

    trained: more folders that the bundle was trained on; they are only compared with. near: whether
    near-duplicates are left out too.

    Raises:
        InvalidInputError: nothing of a folder is left.
    """
    training_set = load_training_set(bundle)
    seen = np.zeros(0, dtype=np.uint32) if training_set is None else training_set.fingerprints
    every = [*folders, *trained]
    known = [np.isin([fingerprint(t) for t in o.texts], seen) for o in every]
    found = near_duplicates(every, known) if near else [np.full(len(k), -1) for k in known]
    left = []
    for outcomes, mine, match in zip(folders, known, found, strict=False):
        rows = np.flatnonzero(~mine & (match < 0))
        if not len(rows):
            raise InvalidInputError(
                Violation(
                    outcomes.name,
                    "the bundle was trained on all of its questions or near-duplicates of them.",
                )
            )
        left.append(drop_candidates(outcomes.take(rows)))
    return left


def with_training_scores(scored: ScoredDataset, whole: Outcomes) -> ScoredDataset:
    """Return `scored` with the scores of its candidates on the training part of the folder."""
    training, _, _ = split(whole.texts)
    columns = np.array([whole.candidates.index(name) for name in scored.outcomes.candidates])
    return replace(scored, training_scores=whole.scores[np.ix_(columns, training)].T)


def score_dataset(
    bundle: Path,
    outcomes: Outcomes,
    catalog: Path | None,
    cache: Path | None = None,
    *,
    matched: bool = True,
) -> ScoredDataset:
    """Score `outcomes` through `bundle`; prices come from `catalog`.

    cache: see score_once. matched: see score_outcomes.
    """
    predicted = score_once(bundle, outcomes, cache, matched=matched)
    costs = costs_of(outcomes, predicted.input_tokens, catalog, DEFAULT_OUTPUT_TOKENS)
    return ScoredDataset(outcomes, predicted.p, outcomes.scores.T, costs, predicted.embeddings)


def measure(scored: ScoredDataset) -> dict[str, Any]:
    """Compute every metric of report.json with its 95 % bootstrap interval."""
    p, y = scored.p, scored.scores
    aucs = metrics.per_instruction_aucs(p, y)
    result: dict[str, Any] = {
        "instructions": len(p),
        "candidates": p.shape[1],
        "outcomes": int((~np.isnan(y)).sum()),
    }

    def add(name: str, metric: Callable[[Int64Array], float]) -> None:
        result.update(with_intervals((name,), lambda r: [metric(r)], len(p)))

    add("pooled_auc", lambda r: metrics.pooled_auc(p[r], y[r]))
    add("per_instruction_auc", lambda r: metrics.nanmean(aucs[r]))
    add("brier", lambda r: metrics.brier(p[r], y[r]))
    add("ece", lambda r: metrics.ece(p[r], y[r]))
    names = scored.outcomes.benchmarks

    def cell_error(rows: Int64Array) -> float:
        groups = [names[i] for i in rows]
        return metrics.nanmean(metrics.cell_errors(p[rows], y[rows], groups))

    add("cell_error", cell_error)
    result |= measure_routing(scored)
    result["top_candidate_share"] = metrics.top_candidate_share(p)
    # (mean p, share that succeeded, share of the pairs) of each bin.
    result["reliability"] = np.stack(metrics.reliability(p, y), axis=1).tolist()
    return result


def with_intervals(
    names: Sequence[str], compute: Callable[[Int64Array], Sequence[float]], rows: int
) -> dict[str, Any]:
    """Compute named metrics of all rows, and their intervals under NAME_ci."""
    values, bounds = compute(np.arange(rows)), metrics.intervals(compute, rows)
    result: dict[str, Any] = {}
    for name, value, bound in zip(names, values, bounds, strict=True):
        result |= {name: value, f"{name}_ci": bound}
    return result


def measure_routing(scored: ScoredDataset) -> dict[str, Any]:
    """Measure what is gained by following the probabilities.

    Over the largest subset where every candidate was measured on every instruction; NaN if it is
    empty.
    """
    block = tradeoff.largest_complete_subset(scored.scores)
    part = np.ix_(block.rows, block.candidates)
    p, y, costs = scored.p[part], scored.scores[part], scored.costs[part]
    if not len(y):
        return with_intervals(ROUTING, lambda _: [float("nan")] * len(ROUTING), 0)
    chosen = y[np.arange(len(y)), p.argmax(axis=1)]
    single = y[:, int(y.mean(axis=0).argmax())]
    best = scored.best_constant(block.candidates)
    constant = y[:, best]
    gains = (chosen, single, chosen - single, y, y.max(axis=1), constant, chosen - constant)
    result = with_intervals(ROUTING, lambda r: [float(x[r].mean()) for x in gains], len(y))
    result["best_constant"] = scored.outcomes.candidates[block.candidates[best]]
    result["complete_instructions"], result["complete_candidates"] = y.shape
    priced = np.flatnonzero(~np.isnan(costs).any(axis=0))
    if len(priced) > 1:
        p, y, costs = p[:, priced], y[:, priced], costs[:, priced]
        best = scored.best_constant(block.candidates[priced])
        result |= with_intervals(COSTS, lambda r: cost_metrics(p[r], y[r], costs[r], best), len(y))
    return result


def cost_metrics(p: FloatArray, y: FloatArray, costs: FloatArray, best: int) -> list[float]:
    """Compute the metrics named in COSTS from one curve of accuracy against cost.

    They are the lowest cost at 95 % and at 100 % of the accuracy of candidate `best`, as shares of
    its cost; the one at 95 % as a share of the cheapest random mix of candidates that is as
    accurate; and the area under the curve. A cost is infinite if no cost sensitivity is accurate
    enough, so that a resample which misses counts.
    """
    points = tradeoff.curve(p, y, costs)
    accuracy, cost = tradeoff.single_candidate_baselines(y, costs)
    wanted = 0.95 * float(accuracy[best])
    found = tradeoff.cheapest_at(points, wanted), tradeoff.cheapest_at(points, accuracy[best])
    least, whole = (np.inf if x is None else x.cost for x in found)
    mix = tradeoff.cheapest_mixture_cost(accuracy, cost, wanted)
    shares = [_over(least, float(cost[best])), _over(whole, float(cost[best])), _over(least, mix)]
    return [*shares, tradeoff.area_under_curve(points, cost)]


def _over(cost: float, of: float) -> float:
    """Divide; NaN if the best single candidate costs nothing."""
    return cost / of if of else float("nan")


def breakdown(scored: ScoredDataset) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the main metrics by benchmark and by candidate."""
    names = np.array(scored.outcomes.benchmarks)
    by_benchmark = {
        str(name): metrics.report(scored.p[names == name], scored.scores[names == name])
        for name in sorted(set(names))
        if (names == name).sum() >= MIN_ROWS
    }
    by_candidate = {}
    for i, name in enumerate(scored.outcomes.candidates):
        p, y = scored.p[:, [i]], scored.scores[:, [i]]
        by_candidate[name] = {
            "outcomes": int((~np.isnan(y)).sum()),
            "accuracy": float(np.nanmean(y)),
            "mean_p": float(p[~np.isnan(y)].mean()),
            "auc": metrics.pooled_auc(p, y),
        }
    return {"benchmarks": by_benchmark, "by_candidate": by_candidate}


def as_markdown(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """Render a table with a column for each dataset and a row for each metric with an interval."""
    names = list(datasets)
    rows = dict.fromkeys(k for d in datasets.values() for k in d if f"{k}_ci" in d)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    sizes = [f"{datasets[n]['instructions']} x {datasets[n]['candidates']}" for n in names]
    lines.append("| instructions x candidates | " + " | ".join(sizes) + " |")
    for metric in rows:
        cells = []
        for name in names:
            value = datasets[name].get(metric)
            cell = "" if value is None else _format(value, 4)
            if bounds := datasets[name].get(f"{metric}_ci"):
                cell += f" ({_format(bounds[0], 3)} to {_format(bounds[1], 3)})"
            cells.append(cell)
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _memory_line(found: Mapping[str, float]) -> str:
    pairs = [
        f"{name} {found[f'{name}_before']:.3f} > {found[name]:.3f}"
        for name in ("pooled_auc", "apgr", "log_loss", "ece", "routed_accuracy")
        if name in found
    ]
    gains = [f"{n} {100 * found[n]:+.1f}" for n in ("routed_gain", "guarded_gain") if n in found]
    return ", ".join(pairs + gains)


def _format(value: float, digits: int) -> str:
    """Format a number; a cost is infinite if no cost sensitivity reaches the accuracy."""
    return "none" if np.isinf(value) else f"{value:.{digits}f}"


def require_distinct(folders: Iterable[Path]) -> None:
    """Raise InvalidInputError if two folders have the same name, which the report goes by."""
    by_name: dict[str, Path] = {}
    for folder in folders:
        if folder.name in by_name:
            raise InvalidInputError(
                Violation(
                    "--data",
                    f"has {by_name[folder.name]} and {folder}, both named {folder.name!r}: their"
                    " reports would overwrite each other. Rename one, or evaluate them separately"
                    " with different --out.",
                )
            )
        by_name[folder.name] = folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--bundle", type=Path, default=Path("artifacts/bundle"), help="bundle to evaluate"
    )
    text = "data folders; given again, --data adds to them"
    parser.add_argument("--data", type=Path, nargs="+", action="extend", required=True, help=text)
    text = "more data folders that the bundle was trained on, whose near-duplicates are left out"
    parser.add_argument("--trained", type=Path, nargs="+", default=[], help=text)
    parser.add_argument("--catalog", type=Path, help="file with prices (the bundle's own)")
    parser.add_argument("--out", type=Path, required=True, help="folder for report and plots")
    parser.add_argument(
        "--memory",
        type=int,
        nargs="+",
        metavar="N",
        help="also measure with N remembered instructions, for each N",
    )
    parser.add_argument(
        "--feedback",
        choices=get_args(Feedback),
        default="comparisons",
        help="whose outcomes come back for a remembered instruction (comparisons: all)",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=Settings().confidence,
        help="standard errors that a gain must exceed; see engine/routing/guard.py (the server's)",
    )
    parser.add_argument(
        "--scores", type=Path, help="folder that keeps the scores for another evaluation"
    )
    text = "leave out the match of instructions with the tasks of the candidates' tests"
    parser.add_argument("--no-match", action="store_true", help=text)
    text = "keep near-duplicates of trained rows, to compare with figures of before they were found"
    parser.add_argument("--keep-near-duplicates", action="store_true", help=text)
    parser.add_argument("--draws", type=int, default=5, help="of what is remembered (5)")
    return parser


def main() -> None:
    """Parse the command line, evaluate, write the report, print a table and the report as JSON."""
    arguments = _parser().parse_args()
    require_distinct(arguments.data)
    catalog = arguments.catalog or arguments.bundle / "zoo.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    folders = [read_outcomes(folder) for folder in arguments.data]
    trained = [read_outcomes(folder) for folder in arguments.trained]
    near = not arguments.keep_near_duplicates
    unseen = unseen_folders(arguments.bundle, folders, trained, near=near)
    evaluated: list[ScoredDataset] = []
    datasets: dict[str, dict[str, Any]] = {}
    trials: list[MemoryTrial] = []
    for folder, whole, outcomes in zip(arguments.data, folders, unseen, strict=True):
        scored = score_dataset(
            arguments.bundle,
            outcomes,
            catalog,
            arguments.scores,
            matched=not arguments.no_match,
        )
        scored = with_training_scores(scored, whole)
        evaluated.append(scored)
        if known := len(whole.texts) - len(outcomes.texts):
            print(
                f"{folder.name}: leaving out {known} instructions, because the bundle was trained"
                " on them, or near-duplicates of its training set or of aptitude items",
                file=sys.stderr,
            )
        datasets[folder.name] = measure(scored) | breakdown(scored)
        datasets[folder.name]["dropped_candidates"] = dict(outcomes.dropped)
        if arguments.memory is not None:
            trial = MemoryTrial(
                scored.p,
                scored.scores,
                scored.costs,
                scored.embeddings,
                load_arrays(arguments.bundle).instruction_space,
                arguments.feedback,
                arguments.confidence,
            )
            trials.append(trial)
            memory = measure_memory(trial, arguments.memory, arguments.draws)
            datasets[folder.name]["memory"] = memory
            if skipped := [n for n in arguments.memory if str(n) not in memory]:
                print(
                    f"{folder.name}: leaving out --memory {' '.join(map(str, skipped))}, because"
                    f" under 40 % of its {len(trial.p)} instructions would be routed",
                    file=sys.stderr,
                )
        plot_dataset(scored.p, scored.scores, scored.costs, arguments.out / folder.name)
    report: dict[str, Any] = {"datasets": datasets}
    if len(evaluated) > 1:
        report["mixture"] = measure_mixture(evaluated)
        gains = {name: d["gain_over_constant"] for name, d in datasets.items()}
        report["mixture"] |= describe_worst(gains)
        plot_gains(datasets | {"all, alike": report["mixture"]}, arguments.out / "gains.png")
    if len(trials) > 1:
        memory = measure_memory(mixture(trials), arguments.memory, arguments.draws)
        report["mixture"]["memory"] = memory
    remembered = {name: d["memory"] for name, d in datasets.items() if d.get("memory")}
    if remembered:
        plot_memory(remembered, arguments.out / "memory.png")
    text = json.dumps(report, indent=1, allow_nan=True)
    (arguments.out / "report.json").write_text(text + "\n", encoding="utf-8")
    table = as_markdown(
        datasets | {"all, alike": report["mixture"]} if "mixture" in report else datasets
    )
    (arguments.out / "report.md").write_text(table, encoding="utf-8")
    print(table)
    for name, figures in (datasets | {"mixture": report.get("mixture", {})}).items():
        for size, found in figures.get("memory", {}).items():
            print(f"{name}, {size} remembered: {_memory_line(found)}")
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
