"""Draw the instructions of a run, and draw the same ones when the run is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle.types import Float32Array, FloatArray
from engine.compare.sampling.instructions import LoggedInstruction
from engine.compare.sampling.spread import Regions, draw_spread, find_regions
from engine.compare.sampling.vectors import tfidf

MAX_ASKED_NOVELTY = 1000  # instructions that a server is asked about
TFIDF = "TF-IDF of words"

Novelty = Callable[
    [Sequence[str]], FloatArray | None
]  # texts -> weights, larger where less is known


@dataclass(frozen=True)
class DrawnSample:
    """The instructions of a run in the order of the draw. vectors: (K, D) of length 1."""

    instructions: tuple[LoggedInstruction, ...]
    vectors: Float32Array

    def regions(self, count: int | None, seed: int) -> Regions:
        """Group the instructions; see find_regions."""
        texts = [i.text for i in self.instructions]
        categories = [i.category for i in self.instructions]
        return find_regions(self.vectors, texts, categories, count, seed)


def draw_sample(
    pool: Sequence[LoggedInstruction],
    count: int,
    seed: int,
    file: Path,
    vectors: Float32Array | None = None,
    novelty: Novelty | None = None,
) -> DrawnSample:
    """Draw `count` instructions of `pool`, or those that an earlier run drew.

    What is new to a server changes while a run records, so the draw is kept in `file`: a resumed
    run asks the same instructions. A draw from another log, or by another seed, replaces it.

    Args:
        vectors: (N, D) of the pool, of length 1; None takes TF-IDF.
        novelty: where to look first; None means that all regions are alike.
    """
    source = tfidf([instruction.text for instruction in pool]) if vectors is None else vectors
    settings = _settings(pool, count, seed, "tfidf" if vectors is None else "embeddings")
    rows = _kept(file, settings, pool)
    if rows is None:
        rows = _draw(pool, source, count, seed, novelty)
        document = {**settings, "instructions": [pool[row].key for row in rows]}
        unfinished = file.with_name(file.name + ".tmp")
        unfinished.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(file)
    return DrawnSample(tuple(pool[row] for row in rows), source[rows])


def _draw(
    pool: Sequence[LoggedInstruction],
    vectors: Float32Array,
    count: int,
    seed: int,
    novelty: Novelty | None,
) -> list[int]:
    if novelty is None:
        return draw_spread(vectors, count, seed)
    considered = draw_spread(vectors, max(count, MAX_ASKED_NOVELTY), seed)
    weights = novelty([pool[row].text for row in considered])
    drawn = draw_spread(vectors[considered], count, seed, weights)
    return [considered[row] for row in drawn]


def _settings(
    pool: Sequence[LoggedInstruction], count: int, seed: int, vectors: str
) -> dict[str, Any]:
    keys = "\n".join(sorted(instruction.key for instruction in pool))
    digest = hashlib.sha256(keys.encode()).hexdigest()
    return {"pool": digest, "sample": count, "seed": seed, "vectors": vectors}


def _kept(
    file: Path, settings: dict[str, Any], pool: Sequence[LoggedInstruction]
) -> list[int] | None:
    """Return the rows that `file` names, None if it is of another draw."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if any(document.get(name) != value for name, value in settings.items()):
            return None
        row_of = {instruction.key: row for row, instruction in enumerate(pool)}
        return [row_of[key] for key in document["instructions"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def novelty_of(similar_outcomes: Sequence[float | None]) -> FloatArray | None:
    """Weigh instructions by the outcomes that a server remembers of similar ones, on the mean of
    the candidates: 1 without any, 1/2 with one, and so on. None if the server does not say."""
    if not similar_outcomes or any(number is None for number in similar_outcomes):
        return None
    return 1.0 / (1.0 + np.array(similar_outcomes, dtype=np.float64))
