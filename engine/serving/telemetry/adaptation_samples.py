"""Metrics of what is learned from outcomes, read at every scrape."""

from __future__ import annotations

from collections.abc import Callable

from engine.adaptation.adaptation import FitFigures
from engine.adaptation.outcome_matrix import PROVENANCES
from engine.adaptation.source import AdaptationSource, FitRecord
from engine.serving.telemetry.metrics import Samples, hash_48

PREFIX = "modelsat_adaptation_"
NOTHING = FitRecord("", False, "", FitFigures(0, {}, 0.0, 0.0, 0.0, 0.0, 0.0))


def adaptation_samples(source: AdaptationSource | None) -> dict[str, Callable[[], Samples]]:
    """Return metric -> samples of the adaptation that is served, zeros if there is none.

    source: None if the server does not learn.
    """

    def served() -> FitRecord:
        record = None if source is None else source.status()
        return NOTHING if record is None else record

    def log_loss() -> Samples:
        figures = served().figures
        return {("before",): figures.log_loss_before, ("after",): figures.log_loss_after}

    def outcomes() -> Samples:
        counts = served().figures.outcomes
        return {(name,): counts.get(name, 0) for name in PROVENANCES}

    samples: dict[str, Callable[[], Samples]] = {
        "active": lambda: {(): served().active},
        "frozen": lambda: {(): source is not None and source.frozen},
        "hash": lambda: {(): hash_48(served().id) if served().id else 0},
        "instructions": lambda: {(): served().figures.instructions},
        "outcomes": outcomes,
        "unused_outcomes": lambda: {(reason,): n for reason, n in served().unused.items()},
        "log_loss": log_loss,
        "newest_outcome_timestamp_seconds": lambda: {(): served().figures.as_of},
        "fit_seconds": lambda: {(): served().figures.seconds},
    }
    return {PREFIX + name: sample for name, sample in samples.items()}
