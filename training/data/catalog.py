"""Write a catalog, the file of candidates that a bundle or server starts with, from a data folder.

    python -m training.data.catalog --data DIR --out FILE    every candidate of the folder
    python -m training.data.catalog --data DIR               new accuracies for those in --catalog
    python -m training.data.catalog --published FILE         the candidates of published figures

Names, context windows and prices come from the entry of --catalog with the same id or display name;
a candidate without one gets an id made of its name. Accuracies are those of the folder's aptitude
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
from engine.registry.candidate_files.published import candidate_from, read_published
from engine.registry.catalog import catalog_text, read_catalog


def task_results(keywords: Sequence[str], accuracies: Float32Array) -> tuple[TaskResult, ...]:
    """Make the TEST_TASKS results that a candidate is registered with.

    accuracies: (T,), NaN = not tested. A task of a smaller test appears about TEST_TASKS / T times,
    with its keywords in other orders: level and profile are means over tasks, so they stay what
    training saw, up to the remainder of that division. Of a larger test the first tasks are kept.
    """
    tested = [(k, float(a)) for k, a in zip(keywords, accuracies, strict=True) if not np.isnan(a)]
    names = [reordered_keywords(task, -(-TEST_TASKS // len(tested))) for task, _ in tested]
    indices = [divmod(i, len(tested)) for i in range(TEST_TASKS)]
    return tuple(TaskResult(names[task][copy], round(tested[task][1], 4)) for copy, task in indices)


def reordered_keywords(task: str, count: int) -> list[str]:
    """Make `count` names of one task, which embed almost alike; numbered if words are too few."""
    orders = islice(permutations(task.split(", ")), 1000)
    names = list(dict.fromkeys(", ".join(order) for order in orders))[:count]
    return names + [f"{task}, part {n + 1}" for n in range(len(names), count)]


def catalog_of(outcomes: Outcomes, described: Sequence[Candidate]) -> list[Candidate]:
    """Describe every candidate of `outcomes`, with what `described` has of it.

    Raises:
        InvalidInputError: two names give the same id.
    """
    known = {name: c for c in described for name in (c.id, c.display_name)}
    candidates = []
    for name, accuracies in zip(outcomes.candidates, outcomes.test.accuracies, strict=True):
        aptitude = task_results(outcomes.test.keywords, accuracies)
        candidate = known.get(name) or Candidate(id_for(name), aptitude, display_name=name)
        candidates.append(replace(candidate, aptitude=aptitude))
    require_valid(candidates)
    return candidates


def id_for(name: str) -> str:
    """Make an id of the characters of `name` that it may have, or a hash if there are none."""
    latin = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:63].rstrip("._-")
    return latin or f"candidate-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def refresh(described: Sequence[Candidate], outcomes: Outcomes) -> list[Candidate]:
    """Give those of `described` that `outcomes` holds their new accuracies; the order is kept."""
    new = {c.id: c for c in catalog_of(outcomes, described)}
    return [new.get(c.id, c) for c in described]


def write(candidates: Sequence[Candidate], about: str, out: Path) -> None:
    """Write the file that engine/registry/catalog.py reads, accuracies in the short form."""
    entries = [
        {k: v for k, v in to_json(c).items() if k != "aptitude"}
        | {"aptitude": {r.task: _short_form(r) for r in c.aptitude}}
        for c in candidates
    ]
    out.write_text(catalog_text({"about": about, "candidates": entries}), encoding="utf-8")


def _short_form(result: TaskResult) -> float | list[float]:
    return [result.accuracy, result.questions] if result.questions else result.accuracy


def merged(described: Sequence[Candidate], made: Sequence[Candidate]) -> list[Candidate]:
    """Put candidates of published figures after those of `described`, in place of those of the same
    ID, whose prices and capabilities stay."""
    known = {c.id: c for c in described}
    kept = [c for c in described if c.id not in {m.id for m in made}]
    return kept + [
        replace(known.get(m.id, m), aptitude=m.aptitude, mean_output_tokens=m.mean_output_tokens)
        for m in made
    ]


def _about(catalog: Path) -> str:
    content = json.loads(catalog.read_text(encoding="utf-8"))
    return str(content.get("about", "")) if isinstance(content, dict) else ""


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="data folder")
    source.add_argument("--published", type=Path, metavar="FILE", help="published figures")
    parser.add_argument(
        "--catalog",
        type=Path,
        default=Path("pretrained/zoo.json"),
        help="names and prices; updated if there is no --out (%(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write every candidate of the folder to this file")
    arguments = parser.parse_args()
    described = read_catalog(arguments.catalog)
    if arguments.published:
        made = [candidate_from(each) for each in read_published(arguments.published)]
        write(
            merged(described, made), _about(arguments.catalog), arguments.out or arguments.catalog
        )
        print(f"{arguments.out or arguments.catalog}: {len(made)} candidates of published figures")
        return
    outcomes = read_outcomes(arguments.data)
    if arguments.out:
        candidates = catalog_of(outcomes, described)
        about = f"The candidates of {outcomes.name}; accuracies from its aptitude test."
    else:
        candidates = refresh(described, outcomes)
        about = _about(arguments.catalog)
    target = arguments.out or arguments.catalog
    write(candidates, about, target)
    print(f"{target}: {len(candidates)} candidates")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
