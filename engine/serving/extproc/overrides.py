"""What a caller or its gateway wishes of a decision, from HTTP headers and from metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.api.candidate import PREFIX
from engine.api.errors import InvalidInputError, Violation
from engine.api.policy import Policy, Session
from engine.api.proto import policy_from, session_from
from engine.pb import router_service_pb2 as pb

NAMESPACE = "modelsat"  # of metadata, both ways
LISTS = ("allowed_candidates", "denied_candidates")
NUMBERS = ("cost_sensitivity", "target_probability", "budget_usd")
WISHES = (*LISTS, *NUMBERS, "session")


def policy_and_session(
    wishes: Mapping[str, Any], headers: Mapping[str, str], prefix: str
) -> tuple[Policy, Session | None]:
    """wishes: of WISHES, from metadata, which go before those of the headers (lower-case, named
    `prefix` and the wish). Raises InvalidInputError."""
    asked = pb.RouteRequest()
    for name, (where, value) in _told(wishes, headers, prefix).items():
        if name in LISTS:
            names = value if isinstance(value, list) else str(value).split(",")
            ids = [PREFIX + str(n).strip().removeprefix(PREFIX) for n in names]
            getattr(asked.policy, name).extend(ids)
        elif name in NUMBERS:
            setattr(asked.policy, name, _number(where, value))
        else:
            asked.session.id = str(value)
    return policy_from(asked.policy), session_from(asked)


def _told(
    wishes: Mapping[str, Any], headers: Mapping[str, str], prefix: str
) -> dict[str, tuple[str, Any]]:
    """Name -> (where it stands, value). An objective in metadata goes before all those in headers,
    whichever it is."""
    given = {name: (f"metadata {NAMESPACE}.{name}", v) for name, v in wishes.items()}
    named = {prefix + name.replace("_", "-"): name for name in WISHES if name not in given}
    if not given.keys().isdisjoint(NUMBERS):
        named = {header: name for header, name in named.items() if name not in NUMBERS}
    sent = {n: (header, headers[header]) for header, n in named.items() if header in headers}
    for where, value in given.values():
        if value is None or value == []:
            # To leave it out would open what was meant to be closed.
            raise InvalidInputError(Violation(where, "is empty; give a value, or leave it out."))
    for source in (given, sent):
        objectives = [where for name, (where, _) in source.items() if name in NUMBERS]
        if len(objectives) > 1:
            raise InvalidInputError(
                Violation(objectives[1], f"stands beside {objectives[0]}; give one objective.")
            )
    return given | sent


def _number(header: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(Violation(header, "is no number.")) from None
