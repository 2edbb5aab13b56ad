"""Read RecordOutcome and RecordComparison requests, and check every field."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from engine.api.candidate import MAX_CANDIDATES, parse_name
from engine.api.errors import InvalidInputError, Violation
from engine.api.proto import check_text
from engine.api.request_context import PRINCIPAL
from engine.api.usage import Usage
from engine.pb import router_service_pb2 as pb
from engine.registry.stores.outcome_types import RecordedOutcome

MAX_LABEL_CHARS = 200  # of a category, a grader, an error
DECISION_ID = re.compile(r"[0-9a-f]{32}")
TOKENS = ("input_tokens", "output_tokens", "reasoning_tokens")
MAX_TOKENS = 10**12


def outcome_from(request: pb.RecordOutcomeRequest, max_text_bytes: int) -> RecordedOutcome:
    """Read an outcome; raises one InvalidInputError that lists every violation."""
    violations: list[Violation] = []
    if request.decision_id or not request.text:
        violations += _check_decision_id(request.decision_id)
    identifier = _candidate(request.candidate, "candidate", violations)
    if request.text:
        violations += _check_text(request.text, max_text_bytes)
    violations += _check_score(request.score, "score")
    violations += _check_labels(category=request.category)
    usage = _usage(request, "usage", violations)
    if violations:
        raise InvalidInputError(*violations)
    return RecordedOutcome(
        request.decision_id,
        identifier,
        request.score,
        request.text if request.store_text or not request.HasField("store_text") else "",
        request.category,
        PRINCIPAL.get(),
        usage,
    )


def comparison_from(
    request: pb.RecordComparisonRequest, max_text_bytes: int
) -> Sequence[RecordedOutcome]:
    """Read the outcomes of a comparison; raises one InvalidInputError that lists every
    violation."""
    violations: list[Violation] = []
    if bool(request.decision_id) == bool(request.text):
        found = "both are" if request.text else "neither is"
        violations.append(
            Violation("text", f"or decision_id must be set, and not both; {found} set.")
        )
    elif request.decision_id:
        violations += _check_decision_id(request.decision_id)
    else:
        violations += _check_text(request.text, max_text_bytes)
    if not 2 <= len(request.candidates) <= MAX_CANDIDATES:
        count = len(request.candidates)
        violations.append(
            Violation("candidates", f"has {count} entries; expected 2 to {MAX_CANDIDATES}.")
        )
    if not 0 <= request.disagreement <= 1:
        problem = f"is {request.disagreement}; expected a number in [0, 1]."
        violations.append(Violation("disagreement", problem))
    violations += _check_labels(category=request.category, grader=request.grader)
    disagreement = request.disagreement if request.HasField("disagreement") else None
    outcomes = []
    for i, each in enumerate(request.candidates):
        place = f"candidates[{i}]"
        identifier = _candidate(each.candidate, f"{place}.candidate", violations)
        violations += _check_score(each.score, f"{place}.score")
        usage = _usage(each, f"{place}.usage", violations)
        outcomes.append(
            RecordedOutcome(
                request.decision_id,
                identifier,
                each.score,
                request.text if request.store_text else "",
                request.category,
                PRINCIPAL.get(),
                usage,
                compared=True,
                grader=request.grader,
                disagreement=disagreement,
            )
        )
    violations += _check_distinct(outcome.candidate for outcome in outcomes)
    if violations:
        raise InvalidInputError(*violations)
    return outcomes


def _check_decision_id(text: str) -> list[Violation]:
    if DECISION_ID.fullmatch(text):
        return []
    return [Violation("decision_id", f"is {text[:80]!r}; expected decision_id of a RouteResponse.")]


def _candidate(name: str, field: str, violations: list[Violation]) -> str:
    """Return the ID of a candidate's name; "" after adding what is wrong with it."""
    try:
        return parse_name(name, field)
    except InvalidInputError as error:
        violations += error.violations
        return ""


def _check_text(text: str, max_bytes: int) -> Sequence[Violation]:
    try:
        check_text(text, max_bytes)
    except InvalidInputError as error:
        return error.violations
    return []


def _check_score(score: float, field: str) -> list[Violation]:
    if 0 <= score <= 1:  # false for NaN too
        return []
    return [Violation(field, f"is {score}; expected a number in [0, 1].")]


def _check_labels(**labels: str) -> list[Violation]:
    return [
        Violation(name, f"is {len(text)} characters, the limit is {MAX_LABEL_CHARS}.")
        for name, text in labels.items()
        if len(text) > MAX_LABEL_CHARS
    ]


def _check_distinct(identifiers: Iterable[str]) -> list[Violation]:
    known: set[str] = set()
    for identifier in identifiers:
        if identifier and identifier in known:
            return [Violation("candidates", f"has {identifier} more than once.")]
        known.add(identifier)
    return []


def _usage(
    message: pb.RecordOutcomeRequest | pb.ComparedCandidate,
    field: str,
    violations: list[Violation],
) -> Usage | None:
    """Return the usage of a message, None if it has none, and add what is wrong with it."""
    if not message.HasField("usage"):
        return None
    sent = message.usage
    tokens = {name: getattr(sent, name) for name in TOKENS if sent.HasField(name)}
    cost = sent.cost_usd if sent.HasField("cost_usd") else None
    latency_s = sent.latency.ToNanoseconds() / 1e9 if sent.HasField("latency") else None
    violations += [
        Violation(f"{field}.{name}", f"is {count}; expected 0 to {MAX_TOKENS}.")
        for name, count in tokens.items()
        if not 0 <= count <= MAX_TOKENS
    ]
    for name, number in (("cost_usd", cost), ("latency", latency_s)):
        if number is not None and not 0 <= number < math.inf:
            violations.append(
                Violation(f"{field}.{name}", f"is {number}; expected a number of at least 0.")
            )
    violations += [
        Violation(f"{field}.{wrong.field}", wrong.description)
        for wrong in _check_labels(error=sent.error)
    ]
    return Usage(**tokens, cost_usd=cost, latency_s=latency_s, error=sent.error)
