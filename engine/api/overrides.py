"""Per-request policy overrides from HTTP headers and a gateway's metadata."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from engine.api.candidate import NAME_PREFIX, parse_names
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import OBJECTIVES, Policy, Session, named_session

NAMESPACE = "modelsat"  # of metadata, both ways
OVERRIDE_PREFIX = "x-modelsat-"  # of headers in which HTTP clients override the policy
LISTS = ("allowed_candidates", "denied_candidates")
NUMBERS = ("confidence", "max_latency_ms")
NAMES = (*LISTS, *OBJECTIVES, *NUMBERS, "escalate_after_failures", "session")
HEADERS = {OVERRIDE_PREFIX + n.replace("_", "-"): n for n in NAMES}
# What gateways add to requests and answers themselves, and callers may send back.
ADDED_HEADERS = ("decision-id", "kind", "candidate", "failed", "why")
NUMBERED_HEADERS = "fallback-"
ADDED_METADATA = (
    *("selected", "model", "decision_id", "kind", "revision", "revision_token", "probability"),
    *("input_tokens", "token_count_method"),
)
MAX_COUNT = 1_000_000_000
# Names of version 0.1. They are refused, because ignoring a denied candidate would admit it.
RENAMED = {
    "allow": "allowed_candidates",
    "deny": "denied_candidates",
    "min_probability": "target_probability",
    "max_cost_usd": "budget_usd",
}


def policy_and_session(
    metadata: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[Policy, Session | None]:
    """Build a policy and a session from what a request overrides.

    Args:
        metadata: override field -> value, set by a filter of the gateway. It takes precedence over
            headers, which clients may set.
        headers: all headers of the request, names in lower case.

    Raises:
        InvalidInputError: a value is of the wrong type, there are two objectives, or a name is
            unknown: ignoring a mistyped restriction would lift it. A blank header is as if it
            were not sent; so is a session that is empty in the metadata, but a list or an objective
            in the metadata must have a value.
    """
    headers = {name: value for name, value in headers.items() if value.strip(" ,")}
    for name in metadata:
        _require_known(name, f"metadata {NAMESPACE}.{name[:80]}")
    for header in headers:
        word = header.removeprefix(OVERRIDE_PREFIX)
        is_added = word in ADDED_HEADERS or word.startswith(NUMBERED_HEADERS)
        if word != header and not is_added:
            _require_known(word.replace("-", "_"), header[:80])
    fields: dict[str, Any] = {}
    session = None
    for name, (source, value) in _merge(metadata, headers).items():
        if name in LISTS:
            resource_names = [NAME_PREFIX + n for n in _ids(value)]
            fields[name] = parse_names(resource_names, f"policy.{name}")
        elif name in OBJECTIVES:
            fields |= {"objective": name, "value": _number(source, value)}
        elif name in NUMBERS:
            fields[name] = _number(source, value)
        elif name == "escalate_after_failures":
            fields[name] = _count(source, value)
        else:
            session = named_session(_session_text(source, value))
    return Policy(**fields), session


def combined(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Combine overrides of several sources: a later one takes precedence, and its objective
    replaces every objective before it."""
    result: dict[str, Any] = {}
    for layer in layers:
        if not layer.keys().isdisjoint(OBJECTIVES):
            result = {name: value for name, value in result.items() if name not in OBJECTIVES}
        result |= layer
    return result


def narrowed(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """Combine as `combined` does, but let the later source only narrow the lists of candidates.

    Raises:
        InvalidInputError: no candidate is allowed by both.
    """
    result = combined(outer, inner)
    allowed, denied = LISTS
    if outer.get(denied) and inner.get(denied):
        result[denied] = [*_ids(outer[denied]), *_ids(inner[denied])]
    if outer.get(allowed) and inner.get(allowed):
        within = set(_ids(outer[allowed]))
        result[allowed] = [n for n in _ids(inner[allowed]) if n in within]
        if not result[allowed]:
            problem = "has no candidate that the list around it allows as well."
            raise InvalidInputError(Violation(f"metadata {NAMESPACE}.{allowed}", problem))
    return result


def _ids(value: Any) -> list[str]:
    """Return the IDs of a list, or of a text with commas."""
    names = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip().removeprefix(NAME_PREFIX) for name in names]


def _require_known(name: str, where: str) -> None:
    if new := RENAMED.get(name):
        raise InvalidInputError(Violation(where, f"was renamed; send {new}."))
    if name not in NAMES:
        meant = difflib.get_close_matches(name, NAMES, n=1)
        advice = f"did you mean {meant[0]}?" if meant else f"expected one of {', '.join(NAMES)}."
        raise InvalidInputError(Violation(where, f"is not a setting of a request; {advice}"))


def has_lists(metadata: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """Whether a request has a list of allowed or denied candidates."""
    return any(n in metadata or OVERRIDE_PREFIX + n.replace("_", "-") in headers for n in LISTS)


def _merge(metadata: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Return override field -> (where it comes from, value). An objective in the metadata takes
    precedence over every objective in the headers."""
    in_metadata: dict[str, tuple[str, Any]] = {}
    for name, value in metadata.items():
        where = f"metadata {NAMESPACE}.{name}"
        if name == "session" and value in (None, "", []):
            continue
        if value is None or value == []:
            # Ignoring it would admit candidates that it was meant to exclude.
            raise InvalidInputError(Violation(where, "is empty; give a value, or leave it out."))
        in_metadata[name] = (where, value)
    has_objective = not metadata.keys().isdisjoint(OBJECTIVES)
    in_headers: dict[str, tuple[str, Any]] = {}
    for header, name in HEADERS.items():
        overridden = name in in_metadata or (has_objective and name in OBJECTIVES)
        if header in headers and not overridden:
            in_headers[name] = (header, headers[header])
    for source in (in_metadata, in_headers):
        objectives = [source[name][0] for name in OBJECTIVES if name in source]
        if len(objectives) > 1:
            problem = f"and {objectives[0]} are mutually exclusive; set one objective."
            raise InvalidInputError(Violation(objectives[1], problem))
    return in_metadata | in_headers


def _number(source: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(Violation(source, "is not a number.")) from None


def _count(source: str, value: Any) -> int:
    number = _number(source, value)
    if not 0 <= number <= MAX_COUNT or number != int(number):
        raise InvalidInputError(
            Violation(source, f"is {value}; expected a whole number, 0 or more.")
        )
    return int(number)


def _session_text(source: str, value: Any) -> str:
    """Return a session's name. Bytes of a header are read as UTF-8, like those of metadata."""
    text = str(value)
    if source not in HEADERS:
        return text
    return text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
