"""Fit the scale that puts published benchmark figures on the aptitude test's.

    python -m training.data.published_scale --data DIR

A candidate's level is theta, the log-odds of its mean accuracy in the aptitude test. Each benchmark
measures it with an error:

    log-odds(accuracy) = intercept + slope theta + error

MMLU-Pro is fitted on the candidates of a data folder, which have both its outcomes and a test, and
the other benchmarks on the models of the figures file that have MMLU-Pro. The folder holds no
models that strong, so this carries the relation of test and MMLU-Pro beyond what was measured.

Shapes: M candidates, S subjects, T tasks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.datasets.flags import add_data
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.registry.candidate_files.published import (
    SCALE_FILE,
    Benchmark,
    Figure,
    PublishedCandidate,
    Scale,
    estimate_level,
    read_published,
    read_scale,
)

ABOUT = (
    "Lines that put published accuracies on the aptitude test's scale; see"
    " engine/registry/candidate_files/published.py. Written by"
    " python -m training.data.published_scale."
)
FIGURES = [Path("pretrained/published.json"), Path(__file__).with_name("published_older.json")]
MIN_MODELS = 6  # that a benchmark is fitted on
MIN_SLOPE = 0.3  # of a benchmark that says something of the level
MIN_ERROR = 0.08  # in log-odds: what harness and prompt change
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """log-odds = intercept + slope theta, with the standard deviation of the rest, `error`."""

    intercept: float
    slope: float
    error: float


def log_odds(accuracies: Floats) -> Floats:
    """Return the log-odds of accuracies, kept off 0 and 1."""
    clipped = np.clip(accuracies, 0.005, 0.995)
    return np.asarray(np.log(clipped / (1 - clipped)))


def fit_line(theta: Floats, y: Floats) -> Line:
    """Fit y = intercept + slope theta by least squares."""
    slope, intercept = np.polyfit(theta, y, 1)
    rest = y - intercept - slope * theta
    error = np.sqrt((rest**2).sum() / max(len(y) - 2, 1))
    return Line(float(intercept), float(slope), max(float(error), MIN_ERROR))


def subject_accuracies(outcomes: Outcomes, benchmark: str) -> tuple[list[str], Floats]:
    """Return the subjects of a benchmark, and the candidates' accuracies in them, (M, S)."""
    subjects = np.array(outcomes.subjects)
    mine = np.array(outcomes.benchmarks) == benchmark
    names = sorted(set(subjects[mine]))
    columns = [np.nanmean(outcomes.scores[:, mine & (subjects == s)], axis=1) for s in names]
    return names, np.stack(columns, axis=1).astype(np.float64)


def fit_anchor(
    outcomes: Outcomes, left_out: int | None = None
) -> tuple[Benchmark, dict[str, float], float]:
    """Fit MMLU-Pro on the candidates of a folder.

    left_out: the candidate that is not looked at.

    Returns:
        The benchmark by its 14 subjects, the subjects' mean accuracies, and how much of a lead in a
        subject shows in the test's tasks of that subject.
    """
    names, accuracies = subject_accuracies(outcomes, "mmlu_pro")
    tests = outcomes.test.accuracies.astype(np.float64)
    if left_out is not None:
        accuracies, tests = np.delete(accuracies, left_out, 0), np.delete(tests, left_out, 0)
    level = np.nanmean(tests, axis=1)
    columns = [names.index(s) for s in outcomes.test.subjects]
    line = fit_line(log_odds(level), log_odds(accuracies[:, columns].mean(axis=1)))
    own = _leads(tests)
    published = _leads(accuracies[:, columns])
    carried = float((own * published).sum() / (published**2).sum())
    means = {n: round(float(m), 4) for n, m in zip(names, accuracies.mean(axis=0), strict=True)}
    benchmark = replace(read_scale().benchmarks["mmlu_pro"], models=len(level), **vars(line))
    return benchmark, means, carried


def _leads(accuracies: Floats) -> Floats:
    """Accuracies less the mean of their row and of their column, (M, T)."""
    row, column = accuracies.mean(axis=1, keepdims=True), accuracies.mean(axis=0)
    return np.asarray(accuracies - row - (column - column.mean()))


def fit_benchmarks(
    anchor: Benchmark, described: Sequence[Benchmark], models: Sequence[PublishedCandidate]
) -> dict[str, Benchmark]:
    """Fit the other benchmarks on the published figures of models.

    First on the models that have MMLU-Pro, which says where they are. What too few of them have is
    then fitted on all, by the levels that the benchmarks of before give.
    """
    fitted = {anchor.name: anchor}
    for _ in range(2):
        scale = Scale(dict(fitted), {}, [], 0.0)
        levels = {}
        for model in models:
            known = [f for f in model.figures if f.benchmark in scale.benchmarks]
            of_anchor = [f for f in known if f.benchmark == anchor.name]
            if known:
                levels[model.candidate.id] = estimate_level(of_anchor or known, scale).theta
        for benchmark in described:
            pairs = [
                (levels[m.candidate.id], f.accuracy)
                for m in models
                for f in m.figures
                if f.benchmark == benchmark.name and m.candidate.id in levels
            ]
            if benchmark.name in fitted or len(pairs) < MIN_MODELS:
                continue
            theta, accuracy = np.array(pairs).T
            line = fit_line(theta, log_odds(accuracy))
            if line.slope >= MIN_SLOPE:
                fitted[benchmark.name] = replace(benchmark, models=len(pairs), **vars(line))
    return fitted


def left_out_errors(
    anchor: Benchmark, described: Sequence[Benchmark], models: Sequence[PublishedCandidate]
) -> tuple[Floats, Floats]:
    """Compare each model's level by MMLU-Pro with that by its other benchmarks alone, whose lines
    are fitted without the model.

    Returns:
        The differences of the accuracies, and the differences of the log-odds in standard errors.
    """
    differences, in_errors = [], []
    for i, model in enumerate(models):
        groups: Mapping[bool, list[Figure]] = {
            own: [f for f in model.figures if (f.benchmark == anchor.name) == own]
            for own in (True, False)
        }
        if not all(groups.values()):
            continue
        fitted = fit_benchmarks(anchor, described, [*models[:i], *models[i + 1 :]])
        scale = Scale(fitted, {}, [], 0.0)
        known = [f for f in groups[False] if f.benchmark in fitted]
        own, others = estimate_level(groups[True], scale), estimate_level(known, scale)
        differences.append(others.accuracy - own.accuracy)
        in_errors.append((others.theta - own.theta) / np.hypot(others.error, own.error))
    return np.array(differences), np.array(in_errors)


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))


def main() -> None:
    """Parse the command line, fit and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data(parser, "data folder with MMLU-Pro outcomes and an aptitude test")
    parser.add_argument("--figures", type=Path, nargs="+", default=FIGURES, help="%(default)s")
    arguments = parser.parse_args()
    outcomes = read_outcomes(arguments.data)
    models = [model for file in arguments.figures for model in read_published(file)]
    anchor, subjects, carried = fit_anchor(outcomes)
    described = read_scale().benchmarks
    fitted = fit_benchmarks(anchor, list(described.values()), models)
    content: dict[str, Any] = {
        "about": ABOUT,
        "carried_share": round(carried, 3),
        "subject_means": subjects,
        "task_subjects": dict(zip(outcomes.test.keywords, outcomes.test.subjects, strict=True)),
        "benchmarks": {
            b.name: {
                "keywords": b.keywords,
                "questions": b.questions,
                "intercept": round(b.intercept, 3),
                "slope": round(b.slope, 3),
                "error": round(b.error, 3),
                "models": b.models,
            }
            for b in fitted.values()
        },
    }
    SCALE_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    difference, in_errors = left_out_errors(anchor, list(described.values()), models)
    print(
        f"{len(fitted)} benchmarks; levels of {len(difference)} models by MMLU-Pro and by the other"
        f" benchmarks, fitted without the model, differ by {np.abs(difference).mean():.3f} (root"
        f" mean square {_rms(difference):.3f}, {_rms(in_errors):.2f} standard errors)"
    )


if __name__ == "__main__":
    main()
