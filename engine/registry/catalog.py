"""Read candidates from JSON files: a bundle's catalog, and the files that users register."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.api.candidate import (
    NAME_PREFIX,
    WORD_LISTS,
    Candidate,
    TaskResult,
    decode_place,
    require_valid,
)
from engine.api.errors import InvalidInputError, Violation
from engine.api.prices import in_usd_per_million
from engine.api.text_files import read_utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.bundle.types import Int64Array
    from engine.datasets.outcomes import Outcomes

NUMBER_FIELDS = ("input_usd_per_million", "output_usd_per_million", "mean_output_tokens")
MAX_UNREADABLE_SHARE = 0.05  # of the replies of an aptitude test
TEXT_FIELDS = ("display_name", "price_source")


def read_catalog(path: Path, price_unit: str | None = None) -> list[Candidate]:
    """Read and validate the candidates of a JSON file: an object, a list, or {"candidates": [...]}.

    price_unit: of the prices, see engine/api/prices.py; None refuses prices that look like prices
    per token or per thousand.

    Raises InvalidInputError that lists every problem of the values, duplicates included. Unknown
    fields and values of the wrong type are reported for the first candidate that has one.
    """
    try:
        raw = json.loads(read_utf8(path))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            Violation(str(path), f"is not a readable JSON file ({error}).")
        ) from error
    if isinstance(raw, dict) and "candidates" in raw:
        raw = raw["candidates"]
    items = raw if isinstance(raw, list) else [raw]
    candidates = [_parse_candidate(item, f"candidates[{i}]") for i, item in enumerate(items)]
    require_valid(candidates)
    return [in_usd_per_million(c, price_unit, f"candidates[{i}]") for i, c in enumerate(candidates)]


def catalog_text(content: Any) -> str:
    """Write the content of a file of candidates as JSON, a result with its number of questions on
    one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([\d.]+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n"


def require_readable_test(path: Path, *, accept_unreadable: bool = False) -> None:
    """Refuse the report of an aptitude test that says little about its candidate.

    path: a file that `read_catalog` reads; one without provenance is taken as it is.
    accept_unreadable: take it although many replies choose no option.

    Raises:
        InvalidInputError: no question was graded, or too many replies are unreadable.
    """
    raw = json.loads(read_utf8(path))
    provenance = raw.get("provenance") if isinstance(raw, dict) else None
    if not isinstance(provenance, dict) or "asked" not in provenance:
        return
    tasks = provenance.get("tasks")
    tasks = tasks if isinstance(tasks, dict) else {}
    counts = [provenance, *(t for t in tasks.values() if isinstance(t, dict))]
    empty = [c for c in counts if not _count(c, "asked") > _count(c, "incomplete")]
    if empty:
        raise InvalidInputError(
            Violation(
                str(path),
                "has a test, or a task of it, without a graded question; run `modelsat aptitude"
                " run` again with more --max-tokens or --questions-per-task.",
            )
        )
    asked = _count(provenance, "asked")
    unreadable = _count(provenance, "unparsed") + _count(provenance, "incomplete")
    if unreadable > MAX_UNREADABLE_SHARE * asked and not accept_unreadable:
        raise InvalidInputError(
            Violation(
                str(path),
                f"has {unreadable:g} unreadable replies of {asked:g}, which would pass for the"
                " candidate's skill; fix the cause and ask again, or add --accept-unreadable.",
            )
        )


def _count(counts: dict[str, Any], name: str) -> float:
    """A count of a report; -1, which fails every check, if it is no number."""
    value = counts.get(name, 0)
    return float(value) if isinstance(value, int | float) and value >= 0 else -1.0


def _parse_candidate(item: Any, field: str) -> Candidate:
    fields = {"name", "id", "aptitude", "context_window"}
    fields |= {*NUMBER_FIELDS, *TEXT_FIELDS, *WORD_LISTS}
    if not isinstance(item, dict):
        raise InvalidInputError(
            Violation(field, f"is a {type(item).__name__}, expected an object.")
        )
    if "mean_answer_tokens" in item:  # as version 0.1 wrote it
        item = {"mean_output_tokens": item["mean_answer_tokens"]} | item
        del item["mean_answer_tokens"]
    if unknown := sorted(set(item) - fields):
        raise InvalidInputError(
            Violation(field, f"has unknown fields {unknown}; known fields are {sorted(fields)}.")
        )
    values: dict[str, Any] = {}
    try:
        for name in TEXT_FIELDS:
            values[name] = str(item.get(name, ""))
        for name in NUMBER_FIELDS:
            values[name] = None if item.get(name) is None else float(item[name])
        for name in WORD_LISTS:
            if name in item:
                values[name] = _parse_words(name, item[name])
        window = item.get("context_window")
        return Candidate(
            id=str(item.get("id") or item.get("name", "")).removeprefix(NAME_PREFIX),
            aptitude=_parse_aptitude(item.get("aptitude", [])),
            context_window=None
            if window is None
            else _parse_whole_number("context_window", window),
            **values,
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            Violation(field, f"has a value of the wrong type ({error}).")
        ) from error


def _parse_whole_number(name: str, value: Any) -> int:
    if value != int(value):
        raise ValueError(f"{name} is {value}, expected a whole number")
    return int(value)


def _parse_words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a list of words")
    return tuple(sorted(str(word) for word in value))


def _parse_aptitude(value: Any) -> tuple[TaskResult, ...]:
    """Parse a list of {"task", "accuracy", "questions", "place"}, of which the last two are
    optional, or the short form {task: accuracy} or {task: [accuracy, questions]}."""
    if isinstance(value, dict):
        pairs = {t: r if isinstance(r, list) else [r, 0] for t, r in value.items()}
        return tuple(
            TaskResult(str(task), float(accuracy), _parse_whole_number("questions", questions))
            for task, (accuracy, questions) in pairs.items()
        )
    return tuple(
        TaskResult(
            str(r["task"]),
            float(r["accuracy"]),
            _parse_whole_number("questions", r.get("questions", 0)),
            decode_place(str(r.get("place", ""))),
        )
        for r in value
    )


def costs_of(
    outcomes: Outcomes, input_tokens: Int64Array, catalog: Path | None, default_output_tokens: float
) -> NDArray[np.float64]:
    """Estimate the cost of each instruction with each candidate, in US dollars.

    Args:
        outcomes: names the M candidates, which are matched to the catalog by ID or display name.
        input_tokens: (B,) lengths of the instructions.
        catalog: file with the prices.
        default_output_tokens: length of a reply if the catalog does not have it.

    Returns:
        (B, M), NaN for candidates whose prices are unknown.
    """
    import numpy as np  # imported late: the client's commands read catalogs without it

    by_name: dict[str, Candidate] = {}
    if catalog is not None:
        by_name = {n: c for c in read_catalog(catalog) for n in (c.id, c.display_name)}
    costs = np.full((len(input_tokens), len(outcomes.candidates)), np.nan)
    for column, name in enumerate(outcomes.candidates):
        candidate = by_name.get(name)
        for row, tokens in enumerate(input_tokens if candidate else ()):
            cost = candidate and candidate.expected_cost_usd(int(tokens), default_output_tokens)
            costs[row, column] = np.nan if cost is None else cost
    return costs
