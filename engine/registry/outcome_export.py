"""Export recorded outcomes as a data folder, for training, evaluation and `modelsat calibrate`."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.candidate import Candidate
from engine.api.errors import InvalidInputError, Violation
from engine.api.usage import Usage
from engine.datasets.known_tasks import load_task_keywords
from engine.registry.catalog import read_catalog
from engine.registry.stores.outcomes import RecordedOutcome, read_recorded

BENCHMARK = "recorded"
USED = ("input_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "latency_s")


@dataclass
class RecordedInstruction:
    """A text and what was recorded for it.

    id: of the first decision on this text. scores: candidate ID -> scores, one per decision.
    decisions: on the text, whose propensity is known. weights: candidate ID -> sum of the
    reciprocal propensities with which it was chosen. usage: candidate ID -> of its calls that
    answered.
    """

    id: str
    text: str
    category: str
    scores: dict[str, list[float]] = field(default_factory=dict)
    decisions: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    usage: dict[str, list[Usage]] = field(default_factory=dict)

    def propensity(self, candidate: str) -> float:
        """Return the propensity of a candidate as a data folder holds it; NaN if it has none."""
        weight = self.weights.get(candidate)
        return self.decisions / weight if weight else math.nan

    def mean(self, candidate: str) -> float:
        """Return the mean score of a candidate; NaN if it has none."""
        return _mean(self.scores.get(candidate, []))

    def mean_used(self, candidate: str, name: str) -> float:
        """Return the mean of a field of Usage over the calls of a candidate; NaN if unknown."""
        used = [getattr(usage, name) for usage in self.usage.get(candidate, [])]
        return _mean([value for value in used if value is not None])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class ExportSummary:
    """Counts of an export.

    without_text: outcomes left out because no call of their decision sent the text. unknown:
    candidate ID -> outcomes left out because the bundle's catalog does not have the candidate.
    """

    instructions: int
    candidates: int
    without_text: int
    unknown: Counter[str]


def group_by_text(
    recorded: Iterable[RecordedOutcome],
) -> tuple[list[RecordedInstruction], int]:
    """Return the instructions in order of appearance, and the number of outcomes without a text.

    The text of a decision may come with any of its outcomes. Equal texts are one instruction, so
    that candidates of different decisions can be compared.
    """
    outcomes = list(recorded)
    with_text: dict[str, RecordedOutcome] = {}  # decision ID -> its first outcome with a text
    for outcome in outcomes:
        if outcome.text:
            with_text.setdefault(outcome.decision_id, outcome)
    by_text: dict[str, RecordedInstruction] = {}
    without_text = 0
    for outcome in outcomes:
        source = with_text.get(outcome.decision_id)
        if source is None:
            without_text += 1
            continue
        instruction = by_text.setdefault(
            source.text, RecordedInstruction(outcome.decision_id, source.text, source.category)
        )
        instruction.category = instruction.category or outcome.category
        instruction.scores.setdefault(outcome.candidate, []).append(outcome.score)
        if outcome.usage is not None and not outcome.usage.error:
            instruction.usage.setdefault(outcome.candidate, []).append(outcome.usage)
        if outcome.propensity:
            weight = instruction.weights.get(outcome.candidate, 0.0)
            instruction.weights[outcome.candidate] = weight + 1 / outcome.propensity
            instruction.decisions += 1
    return list(by_text.values()), without_text


def export_outcomes(
    file: str | Path, out: Path, bundle: Path | None = None, registered: Sequence[Candidate] = ()
) -> ExportSummary:
    """Export the outcomes of a store to the data folder `out`.

    With `bundle`, the aptitude results of its catalog are written as well, or those of the
    `registered` candidates, and other candidates are left out.

    Raises:
        InvalidInputError: there is nothing to export.
        StoreError: `file` cannot be read.
    """
    instructions, without_text = group_by_text(read_recorded(file))
    names = sorted({name for each in instructions for name in each.scores})
    unknown: Counter[str] = Counter()
    catalog: dict[str, Candidate] = {}
    if bundle is not None and not registered:
        registered = read_catalog(bundle / "zoo.json")
    if registered:
        catalog = {c.id: c for c in registered}
        for each in instructions:
            unknown.update({n: len(s) for n, s in each.scores.items() if n not in catalog})
        names = [name for name in names if name in catalog]
        instructions = [each for each in instructions if set(names) & set(each.scores)]
    if not instructions:
        raise InvalidInputError(
            Violation(
                str(file),
                f"has no outcome to export ({without_text} without text, {unknown.total()} of"
                " candidates that are not in the table). The server keeps a text only if it is sent"
                " with RecordOutcome, or with `modelsat outcomes import --store-text`.",
            )
        )
    out.mkdir(parents=True, exist_ok=True)
    _write(instructions, names, out)
    if catalog:
        test = aptitude_content([catalog[name] for name in names])
        (out / "aptitude.json").write_text(json.dumps(test), encoding="utf-8")
    return ExportSummary(len(instructions), len(names), without_text, unknown)


def _write(instructions: Sequence[RecordedInstruction], names: Sequence[str], out: Path) -> None:
    """Write everything but aptitude.json. scores.npz holds (M, N) means, NaN = not measured, of
    scores and of what calls used, and propensities if the server explored: if some choice was not
    certain."""
    with gzip.open(out / "instructions.jsonl.gz", "wt", encoding="utf-8") as file:
        for each in instructions:
            line = {"id": each.id, "benchmark": BENCHMARK, "text": each.text}
            if each.category:
                line["subtask"] = each.category
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    listed = json.dumps([{"name": name} for name in names], indent=1)
    (out / "candidates.json").write_text(listed, encoding="utf-8")
    arrays = {"scores": [[each.mean(name) for each in instructions] for name in names]}
    if any(sum(each.weights.values()) > each.decisions for each in instructions):
        propensities = [[each.propensity(name) for each in instructions] for name in names]
        arrays["propensities"] = propensities
    for key in USED:
        means = [[each.mean_used(name, key) for each in instructions] for name in names]
        if not np.isnan(means).all():
            arrays[key] = means
    matrices = {key: np.array(rows, dtype=np.float32) for key, rows in arrays.items()}
    np.savez_compressed(out / "scores.npz", **matrices)  # type: ignore[arg-type]


def aptitude_content(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return the content of aptitude.json: all tasks that a candidate took, null for the others."""
    tasks = sorted({r.task for c in candidates for r in c.aptitude})
    accuracies = {c.id: {r.task: r.accuracy for r in c.aptitude} for c in candidates}
    names = {keywords: task for task, keywords in load_task_keywords().items()}
    return {
        "tasks": [names.get(task, task) for task in tasks],
        "items": {},
        "scores": {name: [of.get(task) for task in tasks] for name, of in accuracies.items()},
    }
