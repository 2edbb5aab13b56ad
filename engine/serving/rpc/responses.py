"""The answer of Route, from a Decision."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from engine.api.candidate import (
    PREFIX,
)
from engine.api.policy import Kind
from engine.pb import router_service_pb2
from engine.routing.decision import Decision

KINDS: dict[Kind, router_service_pb2.DecisionKind] = {
    "scored": router_service_pb2.DECISION_KIND_SCORED,
    "session": router_service_pb2.DECISION_KIND_SESSION,
    "abstained": router_service_pb2.DECISION_KIND_ABSTAINED,
    "fallback": router_service_pb2.DECISION_KIND_FALLBACK,
}


def response_from(decision: Decision) -> router_service_pb2.RouteResponse:
    """The answer of Route."""
    return router_service_pb2.RouteResponse(
        selected=decision.selected.name,
        reason=decision.reason,
        ranking=[
            router_service_pb2.RankedCandidate(
                candidate=r.candidate.name,
                probability=r.probability,
                expected_cost_usd=r.expected_cost_usd,
                utility=r.utility,
            )
            for r in decision.ranking
        ],
        exclusions=[
            router_service_pb2.Exclusion(candidate=PREFIX + name, reason=why)
            for name, why in decision.exclusions.items()
        ],
        revision=decision.revision,
        timing=router_service_pb2.Timing(
            **{phase: _duration(seconds) for phase, seconds in decision.timing.items()}
        ),
        input_tokens=decision.prompt.input_tokens,
        truncated=decision.prompt.truncated,
        unlikeness=decision.prompt.unlikeness,
        decision_id=decision.id,
        kind=KINDS[decision.kind],
    )


def _duration(seconds: float) -> Duration:
    nanos = int(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
