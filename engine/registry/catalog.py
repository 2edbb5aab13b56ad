"""Reading candidates from JSON files: the zoo that ships, and what users add or replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.api.candidate import (
    NAME_PREFIX,
    WORD_LISTS,
    Candidate,
    TaskResult,
    require_valid,
)
from engine.api.errors import InvalidInputError, Violation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.bundle.types import Int64Array
    from engine.datasets.outcomes import Outcomes

NUMBERS = ("input_usd_per_million", "output_usd_per_million", "mean_output_tokens")
WORDS = ("display_name", "price_source")


def read_catalog(path: Path) -> list[Candidate]:
    """The candidates of a JSON file: one object, a list, or {"candidates": [...]}.

    Raises InvalidInputError that lists every problem, duplicates and unknown fields included.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            Violation(str(path), f"is no readable JSON file ({error}).")
        ) from error
    if isinstance(raw, dict) and "candidates" in raw:
        raw = raw["candidates"]
    items = raw if isinstance(raw, list) else [raw]
    candidates = [_candidate(item, f"candidates[{i}]") for i, item in enumerate(items)]
    require_valid(candidates)
    return candidates


def _candidate(item: Any, field: str) -> Candidate:
    known = {"name", "id", "aptitude", "context_window", *NUMBERS, *WORDS, *WORD_LISTS}
    if not isinstance(item, dict):
        raise InvalidInputError(
            Violation(field, f"is a {type(item).__name__}, expected an object.")
        )
    if unknown := sorted(set(item) - known):
        raise InvalidInputError(
            Violation(field, f"has unknown fields {unknown}; known are {sorted(known)}.")
        )
    window = item.get("context_window")
    try:
        words = {k: str(item.get(k, "")) for k in WORDS}
        numbers = {k: None if item.get(k) is None else float(item[k]) for k in NUMBERS}
        return Candidate(
            id=str(item.get("id") or item.get("name", "")).removeprefix(NAME_PREFIX),
            aptitude=_aptitude(item.get("aptitude", [])),
            display_name=words["display_name"],
            context_window=_whole(window),
            input_usd_per_million=numbers["input_usd_per_million"],
            output_usd_per_million=numbers["output_usd_per_million"],
            price_source=words["price_source"],
            mean_output_tokens=numbers["mean_output_tokens"],
            **{k: _word_list(k, item[k]) for k in WORD_LISTS if k in item},
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            Violation(field, f"has a value of the wrong type ({error}).")
        ) from error


def _whole(value: Any) -> int | None:
    if value is not None and value != int(value):
        raise ValueError(f"context_window is {value}, expected whole tokens")
    return None if value is None else int(value)


def _word_list(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{label} is a {type(value).__name__}, expected a list of words")
    return tuple(sorted(str(word) for word in value))


def _aptitude(value: Any) -> tuple[TaskResult, ...]:
    """A list of {"task", "accuracy"}, or the short form {task: accuracy}."""
    if isinstance(value, dict):
        return tuple(TaskResult(str(t), float(a)) for t, a in value.items())
    return tuple(TaskResult(str(r["task"]), float(r["accuracy"])) for r in value)


def costs_of(
    outcomes: Outcomes, input_tokens: Int64Array, catalog: Path | None, answer_tokens: float
) -> NDArray[np.float64]:
    """(B, M) US dollars of each instruction and candidate; NaN where no price is known.

    A candidate is matched to the zoo by its id or display name. input_tokens: (B,). answer_tokens:
    of an answer, where the zoo does not say.
    """
    import numpy as np  # imported late: the client's commands read catalogs without it

    known = (
        {}
        if catalog is None
        else {n: c for c in read_catalog(catalog) for n in (c.id, c.display_name)}
    )
    costs = np.full((len(input_tokens), len(outcomes.candidates)), np.nan)
    for column, name in enumerate(outcomes.candidates):
        candidate = known.get(name)
        for row, tokens in enumerate(input_tokens if candidate else ()):
            cost = candidate and candidate.expected_cost_usd(int(tokens), answer_tokens)
            costs[row, column] = np.nan if cost is None else cost
    return costs
