"""Recorded outcomes as a data folder that training, evaluation and `modelsat calibrate` read."""

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
from engine.datasets.outcomes import load_task_keywords
from engine.registry.catalog import read_catalog
from engine.registry.stores.outcomes import RecordedOutcome, read_recorded

BENCHMARK = "recorded"


@dataclass
class RecordedInstruction:
    """id: of the first decision on this text. scores: candidate id -> scores, one a decision."""

    id: str
    text: str
    category: str
    scores: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, candidate: str) -> float:
        """NaN where it was not measured."""
        scores = self.scores.get(candidate)
        return math.fsum(scores) / len(scores) if scores else math.nan


@dataclass(frozen=True)
class ExportSummary:
    """What a folder holds. without_text: outcomes left out because no call of their decision sent
    the text. unknown: outcomes left out because the bundle does not know their candidate, by id."""

    instructions: int
    candidates: int
    without_text: int
    unknown: Counter[str]


def join(recorded: Iterable[RecordedOutcome]) -> tuple[list[RecordedInstruction], int]:
    """(instructions by first appearance, outcomes without a text).

    The text of a decision may come with any of its outcomes. Equal texts are one instruction, so
    that candidates asked in different decisions can be compared.
    """
    outcomes = list(recorded)
    told: dict[str, RecordedOutcome] = {}
    for each in outcomes:
        if each.text:
            told.setdefault(each.decision_id, each)
    found: dict[str, RecordedInstruction] = {}
    without_text = 0
    for each in outcomes:
        source = told.get(each.decision_id)
        if source is None:
            without_text += 1
            continue
        here = found.setdefault(
            source.text, RecordedInstruction(each.decision_id, source.text, source.category)
        )
        here.category = here.category or each.category
        here.scores.setdefault(each.candidate, []).append(each.score)
    return list(found.values()), without_text


def export(file: Path, out: Path, bundle: Path | None = None) -> ExportSummary:
    """Write the folder `out`. With `bundle`, the aptitude figures of its candidates go with it, and
    candidates it does not know are left out. Raises InvalidInputError where nothing is left,
    StoreError where `file` cannot be read."""
    instructions, without_text = join(read_recorded(file))
    names = sorted({name for each in instructions for name in each.scores})
    unknown: Counter[str] = Counter()
    catalog: dict[str, Candidate] = {}
    if bundle is not None:
        catalog = {c.id: c for c in read_catalog(bundle / "zoo.json")}
        for each in instructions:
            unknown.update({n: len(s) for n, s in each.scores.items() if n not in catalog})
        names = [name for name in names if name in catalog]
        instructions = [each for each in instructions if set(names) & set(each.scores)]
    if not instructions:
        raise InvalidInputError(
            Violation(
                str(file),
                f"has no outcome to export ({without_text} without text, {unknown.total()} of"
                " candidates that the bundle does not know); send text with RecordOutcome.",
            )
        )
    out.mkdir(parents=True, exist_ok=True)
    _write(instructions, names, out)
    if catalog:
        test = aptitude([catalog[name] for name in names])
        (out / "aptitude.json").write_text(json.dumps(test), encoding="utf-8")
    return ExportSummary(len(instructions), len(names), without_text, unknown)


def _write(instructions: Sequence[RecordedInstruction], names: Sequence[str], out: Path) -> None:
    """scores.npz: (candidates, instructions), NaN = not measured."""
    with gzip.open(out / "instructions.jsonl.gz", "wt", encoding="utf-8") as file:
        for each in instructions:
            line = {"id": each.id, "benchmark": BENCHMARK, "text": each.text}
            if each.category:
                line["subtask"] = each.category
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    listed = json.dumps([{"name": name} for name in names], indent=1)
    (out / "candidates.json").write_text(listed, encoding="utf-8")
    scores = [[each.mean(name) for each in instructions] for name in names]
    np.savez_compressed(out / "scores.npz", scores=np.array(scores, dtype=np.float32))


def aptitude(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The content of aptitude.json: every task of any of them, null where one did not sit it."""
    tasks = sorted({r.task for c in candidates for r in c.aptitude})
    figures = {c.id: {r.task: r.accuracy for r in c.aptitude} for c in candidates}
    names = {keywords: task for task, keywords in load_task_keywords().items()}
    return {
        "tasks": [names.get(task, task) for task in tasks],
        "items": {},
        "scores": {name: [known.get(task) for task in tasks] for name, known in figures.items()},
    }
