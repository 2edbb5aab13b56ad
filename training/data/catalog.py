"""Write a catalog from a data folder: the file of candidates that a bundle or a server starts with.

    python -m training.data.catalog --data DIR --out FILE   every candidate of the folder
    python -m training.data.catalog --data DIR           new figures for those that --catalog holds

Names, context windows and prices are those of the entry in --catalog with the same id or display
name; an id is made of the name where there is none. Figures are those of the folder's aptitude
test, or of the one that training derives from its outcomes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

import numpy as np

from engine.api.candidate import TEST_TASKS, Candidate, TaskResult, require_valid, to_json
from engine.api.errors import ModelsatError
from engine.bundle.types import Float32Array
from engine.datasets.outcomes import Outcomes, read_outcomes
from engine.registry.catalog import read_catalog


def figures_of(keywords: Sequence[str], accuracies: Float32Array) -> tuple[TaskResult, ...]:
    """The TEST_TASKS figures that a candidate is registered with. accuracies: (T,), NaN = not sat.

    A task of a smaller test stands there about TEST_TASKS / T times, its keywords in other orders:
    level and shape are means over tasks, so they stay what training saw but for the remainder of
    that division. Of a larger test the first tasks are kept.
    """
    sat = [(k, float(a)) for k, a in zip(keywords, accuracies, strict=True) if not np.isnan(a)]
    names = [in_orders(task, -(-TEST_TASKS // len(sat))) for task, _ in sat]
    places = [divmod(i, len(sat)) for i in range(TEST_TASKS)]
    return tuple(TaskResult(names[task][turn], round(sat[task][1], 4)) for turn, task in places)


def in_orders(task: str, count: int) -> list[str]:
    """`count` names of one task, which embed nearly alike; numbered where words are too few."""
    orders = islice(permutations(task.split(", ")), 1000)
    names = list(dict.fromkeys(", ".join(order) for order in orders))[:count]
    return names + [f"{task}, part {n + 1}" for n in range(len(names), count)]


def catalog_of(outcomes: Outcomes, described: Sequence[Candidate]) -> list[Candidate]:
    """Every candidate of `outcomes`; what `described` says of one is kept.

    Raises InvalidInputError where two names give the same id.
    """
    known = {name: c for c in described for name in (c.id, c.display_name)}
    found = []
    for name, accuracies in zip(outcomes.candidates, outcomes.test.figures, strict=True):
        figures = figures_of(outcomes.test.keywords, accuracies)
        candidate = known.get(name) or Candidate(id_for(name), figures, display_name=name)
        found.append(replace(candidate, aptitude=figures))
    require_valid(found)
    return found


def id_for(name: str) -> str:
    """The characters of `name` that an id may have (engine/api/candidate.py), else a hash."""
    latin = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:63].rstrip("._-")
    return latin or f"candidate-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def refreshed(described: Sequence[Candidate], outcomes: Outcomes) -> list[Candidate]:
    """`described` in its order, with the figures of those that `outcomes` holds."""
    new = {c.id: c for c in catalog_of(outcomes, described)}
    return [new.get(c.id, c) for c in described]


def write(candidates: Sequence[Candidate], about: str, out: Path) -> None:
    """The file that engine/registry/catalog.py reads; a task's figure in the short form."""
    entries = [
        {k: v for k, v in to_json(c).items() if k != "aptitude"}
        | {"aptitude": {r.task: r.accuracy for r in c.aptitude}}
        for c in candidates
    ]
    content = json.dumps({"about": about, "candidates": entries}, indent=1, ensure_ascii=False)
    out.write_text(content + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, default=Path("pretrained/zoo.json"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    outcomes, described = read_outcomes(given.data), read_catalog(given.catalog)
    if given.out:
        candidates = catalog_of(outcomes, described)
        about = f"The candidates of {outcomes.name}; figures from its aptitude test."
    else:
        candidates = refreshed(described, outcomes)
        content = json.loads(given.catalog.read_text(encoding="utf-8"))
        about = content.get("about", "") if isinstance(content, dict) else ""
    write(candidates, about, given.out or given.catalog)
    print(f"{given.out or given.catalog}: {len(candidates)} candidates")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
