"""Read candidates from files: a bundle's catalog, and the files that users write and register."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.api.candidate import (
    NAME_PREFIX,
    WORD_LISTS,
    Candidate,
    TaskResult,
    decode_place,
    encode_place,
    require_valid,
    to_json,
)
from engine.api.errors import InvalidInputError, Violation
from engine.api.prices import in_usd_per_million
from engine.registry.candidate_files.documents import read_document
from engine.registry.candidate_files.published import parse_figures, with_figures
from engine.registry.candidate_files.tasks import task_keywords, with_whole_test

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.bundle.types import Int64Array
    from engine.datasets.outcomes import Outcomes

NUMBER_FIELDS = (
    *("input_usd_per_million", "output_usd_per_million", "mean_output_tokens"),
    *("time_to_first_token_ms", "output_tokens_per_s", "cached_input_usd_per_million"),
)
MAX_UNREADABLE_SHARE = 0.05  # of the replies of an aptitude test
TEXT_FIELDS = ("display_name", "price_source")


def read_catalog(path: Path, price_unit: str | None = None) -> list[Candidate]:
    """Read and validate the candidates of a file, see read_document and parse_catalog.

    Raises:
        InvalidInputError: the file cannot be read, or has invalid values.
    """
    return parse_catalog(read_document(path), price_unit)


def parse_catalog(document: Any, price_unit: str | None = None) -> list[Candidate]:
    """Make candidates of an object, a list, or {"candidates": [...]}.

    Tasks may be named or given by their keywords. A candidate with fewer than TEST_TASKS tasks gets
    estimates for the others, from its published `figures` if it has any.

    Args:
        document: as read_document returns it.
        price_unit: of the prices, see engine/api/prices.py; None refuses prices that look like
            prices per token or per thousand.

    Raises:
        InvalidInputError: lists every problem of the values, duplicates included. Unknown fields
            and values of the wrong type are reported for the first candidate that has one.
    """
    if isinstance(document, dict) and "candidates" in document:
        document = document["candidates"]
    items = document if isinstance(document, list) else [document]
    fields = [_field(item, i) for i, item in enumerate(items)]
    candidates = list(map(_parse_candidate, items, fields))
    require_valid(candidates, paths=fields)
    return list(map(in_usd_per_million, candidates, repeat(price_unit), fields))


def _field(item: Any, place: int) -> str:
    """Name a candidate of a file in errors: by its ID if it has one."""
    identifier = item.get("id") or item.get("name") if isinstance(item, dict) else None
    return f"candidates[{place}]" + (f" ({str(identifier)[:63]})" if identifier else "")


def document_of(candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Return what parse_catalog reads, with the results of a candidate in the short form."""
    return {
        "candidates": [
            to_json(c) | {"aptitude": {r.task: _short(r) for r in c.aptitude}} for c in candidates
        ]
    }


def _short(result: TaskResult) -> Any:
    if not result.place:
        return [result.accuracy, result.questions]
    place = encode_place(result.place)
    return {"accuracy": result.accuracy, "questions": result.questions, "place": place}


def catalog_text(content: Any) -> str:
    """Write the content of a file of candidates as JSON, a result with its number of questions on
    one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([\d.]+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n"


def require_readable_test(document: Any, path: Path, *, accept_unreadable: bool = False) -> None:
    """Refuse the report of an aptitude test that says little about its candidate.

    document: of the file `path`; one without provenance is taken as it is.
    accept_unreadable: take it although many replies choose no option.

    Raises:
        InvalidInputError: no question was graded, or too many replies are unreadable.
    """
    provenance = document.get("provenance") if isinstance(document, dict) else None
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
    fields = {"name", "id", "aptitude", "figures", "context_window"}
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
            values[name] = None if item.get(name) is None else _number(name, item[name])
        for name in WORD_LISTS:
            if name in item:
                values[name] = _parse_words(name, item[name])
        window = item.get("context_window")
        candidate = Candidate(
            id=str(item.get("id") or item.get("name", "")).removeprefix(NAME_PREFIX),
            aptitude=_parse_aptitude(item.get("aptitude", {})),
            context_window=None
            if window is None
            else _parse_whole_number("context_window", window),
            **values,
        )
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InvalidInputError(
            Violation(field, f"has a value that cannot be used: {error}.")
        ) from error
    if "figures" in item:
        return with_figures(candidate, parse_figures(item["figures"], field))
    if not candidate.aptitude:
        problem = (
            "has neither results nor published figures; give `aptitude` with the accuracy of at"
            " least one task, or `figures` (`modelsat candidates template` shows both)."
        )
        raise InvalidInputError(Violation(field, problem))
    return with_whole_test(candidate)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}, expected a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {str(value)[:80]!r}, expected a number") from None


def _parse_whole_number(name: str, value: Any) -> int:
    if isinstance(value, bool | str) or value != int(value):
        raise ValueError(f"{name} is {value}, expected a whole number")
    return int(value)


def _parse_words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a list of words")
    return tuple(sorted(str(word) for word in value))


def _parse_aptitude(value: Any) -> tuple[TaskResult, ...]:
    """Parse a list of {"task", "accuracy", "questions", "place"}, of which the last two are
    optional, or the short form {task: result}, where a result is an accuracy, [accuracy,
    questions], or an object of them."""
    if not isinstance(value, dict | list):
        raise TypeError(f"aptitude is a {type(value).__name__}, expected an object of tasks")
    if isinstance(value, list) and not all(isinstance(r, dict) and "task" in r for r in value):
        raise TypeError("a result in the list aptitude names no task")
    pairs = value.items() if isinstance(value, dict) else [(r["task"], r) for r in value]
    return tuple(_parse_result(str(task), result) for task, result in pairs)


def _parse_result(task: str, result: Any) -> TaskResult:
    if isinstance(result, list) and len(result) == 2:
        result = {"accuracy": result[0], "questions": result[1]}
    elif not isinstance(result, dict):
        result = {"accuracy": result}
    if "accuracy" not in result or set(result) - {"task", "accuracy", "questions", "place"}:
        expected = "accuracy, and optionally questions and place"
        raise ValueError(f"{task[:80]!r} has the fields {sorted(result)}, expected {expected}")
    return TaskResult(
        task_keywords(task),
        _number(f"accuracy of {task[:80]!r}", result["accuracy"]),
        _parse_whole_number(f"questions of {task[:80]!r}", result.get("questions", 0)),
        decode_place(str(result.get("place", ""))),
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
