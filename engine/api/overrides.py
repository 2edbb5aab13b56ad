"""Per-request policy overrides from HTTP headers and a gateway's metadata."""

from __future__ import annotations

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
MAX_COUNT = 1_000_000_000
OVERRIDE_FIELDS = tuple(HEADERS.values())
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
        InvalidInputError: a value is of the wrong type, there are two objectives, or a name is one
            of version 0.1. A blank header is as if it were not sent; so is a session that is empty
            in the metadata, but a list or an objective in the metadata must have a value.
    """
    headers = {name: value for name, value in headers.items() if value.strip(" ,")}
    for name, new in RENAMED.items():
        if name in metadata:
            where = f"metadata {NAMESPACE}.{name}"
            raise InvalidInputError(Violation(where, f"was renamed; send {new}."))
        if (header := OVERRIDE_PREFIX + name.replace("_", "-")) in headers:
            raise InvalidInputError(Violation(header, f"was renamed; send {new}."))
    fields: dict[str, Any] = {}
    session = None
    for name, (source, value) in _merge(metadata, headers).items():
        if name in LISTS:
            names = value if isinstance(value, list) else str(value).split(",")
            resource_names = [NAME_PREFIX + str(n).strip().removeprefix(NAME_PREFIX) for n in names]
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
