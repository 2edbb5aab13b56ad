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
    "ranked": router_service_pb2.DECISION_KIND_RANKED,
    "session_affinity": router_service_pb2.DECISION_KIND_SESSION_AFFINITY,
    "defaulted": router_service_pb2.DECISION_KIND_DEFAULTED,
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
        excluded=[
            router_service_pb2.ExcludedCandidate(candidate=PREFIX + name, reason=why)
            for name, why in decision.excluded.items()
        ],
        revision=decision.revision,
        timing=router_service_pb2.Timing(
            **{phase: _duration(seconds) for phase, seconds in decision.timing.items()}
        ),
        input_tokens=decision.prompt.input_tokens,
        truncated=decision.prompt.truncated,
        ood_score=decision.prompt.ood_score,
        decision_id=decision.id,
        kind=KINDS[decision.kind],
    )


def _duration(seconds: float) -> Duration:
    nanos = int(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
