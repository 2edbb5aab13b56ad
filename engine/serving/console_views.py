"""What the console shows, as plain values for JSON; nothing is decided here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message

from engine.contract.candidate import to_json
from engine.contract.errors import InvalidInputError, Violation
from engine.pb import router_service_pb2 as pb
from engine.registry.store import Revision
from engine.registry.table import Table
from engine.tradeoff import curve

REQUEST_KEYS = {"text", "policy"}


def message_view(message: Message) -> dict[str, Any]:
    """Proto's JSON form with the names of the .proto file; what is 0 or empty is there too."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def candidates_view(table: Table) -> dict[str, Any]:
    """tasks: every task once; aptitude of a candidate: [position in tasks, accuracy] of each."""
    numbers: dict[str, int] = {}
    shown = []
    for candidate in table.candidates:
        entry = to_json(candidate) | {"mean_accuracy": candidate.mean_accuracy()}
        entry["aptitude"] = [
            [numbers.setdefault(r.task, len(numbers)), r.accuracy] for r in candidate.aptitude
        ]
        shown.append(entry)
    return {"revision": table.revision, "tasks": list(numbers), "candidates": shown}


def revisions_view(revisions: Iterable[Revision]) -> dict[str, Any]:
    """Newest first. time: Unix, seconds; None for a revision that was not made."""
    return {
        "revisions": [
            {
                "number": r.number,
                "time": r.created_us / 1e6 if r.created_us else None,
                "description": r.description,
                "candidates": r.candidates,
            }
            for r in revisions
        ]
    }


def route_request(body: bytes) -> pb.RouteRequest:
    """A dry run from JSON `{"text": ..., "policy": {...}}`, policy as modelsat.v1.Policy.

    Raises InvalidInputError; values are not checked beyond their types.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise _wrong("body", "is no JSON in UTF-8, or nested too deeply.") from None
    if not isinstance(asked, dict) or not asked.keys() <= REQUEST_KEYS:
        raise _wrong("body", f"is not as expected: an object with {sorted(REQUEST_KEYS)}.")
    text = asked.get("text", "")
    if not isinstance(text, str):
        raise _wrong("text", "is no string; send the instruction to route.")
    request = pb.RouteRequest(dry_run=True)
    try:
        request.text = text
    except ValueError:  # half of a surrogate pair
        raise _wrong("text", "is not valid UTF-8; send text as UTF-8.") from None
    try:
        json_format.ParseDict(asked.get("policy", {}), request.policy)
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        raise _wrong("policy", f"is no modelsat.v1.Policy: {str(error)[:200]}") from None
    return request


def route_view(response: pb.RouteResponse) -> dict[str, Any]:
    """decision: the answer of Route; curve: see _curve."""
    return {"decision": message_view(response), "curve": _curve(response.ranking)}


def _curve(ranking: Sequence[pb.RankedCandidate]) -> list[dict[str, Any]]:
    """Who is taken as the cost sensitivity grows, one entry from each sensitivity on at which the
    choice changes; expected_cost_usd is None where unknown."""
    # Cheapest first, then by id: the first of equals is what policy.choose takes.
    ordered = sorted(ranking, key=lambda r: (_cost(r, math.inf), r.candidate))
    p = np.array([[r.probability for r in ordered]])
    costs = np.array([[_cost(r, math.nan) for r in ordered]])
    steps: list[dict[str, Any]] = []
    for point in curve(p, p, costs):
        taken = ordered[int(point.shares.argmax())]
        if steps and steps[-1]["candidate"] == taken.candidate:
            continue
        steps.append(
            {
                "cost_sensitivity": point.sensitivity,
                "candidate": taken.candidate,
                "probability": taken.probability,
                "expected_cost_usd": _cost(taken, None),
            }
        )
    return steps


def _cost(ranked: pb.RankedCandidate, unknown: Any) -> Any:
    return ranked.expected_cost_usd if ranked.HasField("expected_cost_usd") else unknown


def _wrong(field: str, description: str) -> InvalidInputError:
    return InvalidInputError(Violation(field, description))
