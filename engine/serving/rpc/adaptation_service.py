"""AdaptationService: show and steer what was learned from outcomes, and explain decisions by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.protobuf.message import Message

from engine.adaptation.adaptation import Adaptation, CorrectedScores
from engine.adaptation.recent_decisions import RecentDecision, RecentDecisions
from engine.adaptation.source import AdaptationSource, FitRecord, Neighbor
from engine.api.candidate import NAME_PREFIX
from engine.api.errors import DecisionNotFoundError, InvalidInputError, Violation
from engine.api.request_context import PRINCIPAL, ROLE
from engine.bundle.types import Float32Array
from engine.pb import adaptation_service_pb2 as pb
from engine.pb import adaptation_service_pb2_grpc
from engine.registry.table import Table
from engine.serving.rpc.candidate_service import completed
from engine.serving.telemetry.change_log import ChangeLog, audited

DEFAULT_PAGE, MAX_PAGE = 20, 200
MAX_NEIGHBORS = 10
MAX_TASKS = 3
ADAPTATION_ID = re.compile(r"[0-9A-Za-z._-]{1,100}")
NOTHING_YET = "No outcomes that can be used have been recorded."
# Who may see what everybody asked and recorded; "" is a caller of a server without tokens.
SEES_ALL = frozenset({"", "admin", "read"})
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Message, Message]


class AdaptationService(adaptation_service_pb2_grpc.AdaptationServiceServicer):
    """See proto/modelsat/v1/adaptation_service.proto; errors are mapped by StatusInterceptor."""

    def __init__(
        self,
        source: AdaptationSource,
        decisions: RecentDecisions,
        changes: ChangeLog | None,
        table: Callable[[], Table],
    ) -> None:
        """Serve `source`. table: returns the newest one."""
        self._table = table
        self._source = source
        self._decisions = decisions
        self._changes = changes

    async def GetAdaptation(
        self, request: pb.GetAdaptationRequest, context: Context
    ) -> pb.Adaptation:
        """Describe what is served."""
        return served(self._source)

    async def ListAdaptations(
        self, request: pb.ListAdaptationsRequest, context: Context
    ) -> pb.ListAdaptationsResponse:
        """List the last fits, newest first."""
        if request.page_size < 0:
            problem = f"is {request.page_size}; expected 0 or more."
            raise InvalidInputError(Violation("page_size", problem))
        records = await self._source.history(min(request.page_size or DEFAULT_PAGE, MAX_PAGE))
        return pb.ListAdaptationsResponse(adaptations=[adaptation_to(r) for r in records])

    @completed
    async def FreezeAdaptation(
        self, request: pb.FreezeAdaptationRequest, context: Context
    ) -> pb.Adaptation:
        """Ignore outcomes from now on."""
        async with self._audited("froze", "the adaptation"):
            await self._source.freeze()
        return served(self._source)

    @completed
    async def UnfreezeAdaptation(
        self, request: pb.UnfreezeAdaptationRequest, context: Context
    ) -> pb.Adaptation:
        """Use all outcomes since the last reset."""
        async with self._audited("unfroze", "the adaptation"):
            await self._source.unfreeze()
        return served(self._source)

    @completed
    async def RollbackAdaptation(
        self, request: pb.RollbackAdaptationRequest, context: Context
    ) -> pb.Adaptation:
        """Return to an earlier fit, and freeze."""
        async with self._audited("rolled back to adaptation", request.id):
            if not ADAPTATION_ID.fullmatch(request.id):
                problem = "is no ID of an adaptation; `modelsat adaptation history` lists them."
                raise InvalidInputError(Violation("id", problem))
            await self._source.rollback(request.id)
        return served(self._source)

    @completed
    async def ResetAdaptation(
        self, request: pb.ResetAdaptationRequest, context: Context
    ) -> pb.Adaptation:
        """Ignore every outcome that was recorded before."""
        async with self._audited("reset", "the adaptation"):
            await self._source.reset()
        return served(self._source)

    async def ExplainDecision(
        self, request: pb.ExplainDecisionRequest, context: Context
    ) -> pb.ExplainDecisionResponse:
        """Say what changed the probabilities of a recent decision."""
        decision = self._decisions.get(request.decision_id)
        sees_all = ROLE.get() in SEES_ALL
        if decision is None or not (sees_all or decision.principal == PRINCIPAL.get()):
            raise DecisionNotFoundError(request.decision_id)
        neighbors: Sequence[Neighbor] = ()
        if sees_all:
            embedding = decision.scored.embedding.astype(np.float32)
            neighbors = await self._source.nearest(embedding, MAX_NEIGHBORS)
        return explanation(decision, self._source.current(), neighbors, self._table())

    def _audited(self, action: str, target: str) -> AbstractAsyncContextManager[None]:
        return audited(self._changes, action, target, lambda: self._table().revision, dry_run=False)


def served(source: AdaptationSource) -> pb.Adaptation:
    """Describe what `source` serves now."""
    record = source.status()
    if record is None:
        return pb.Adaptation(reason=NOTHING_YET, frozen=source.frozen)
    message = adaptation_to(record)
    message.frozen = source.frozen
    return message


def adaptation_to(record: FitRecord) -> pb.Adaptation:
    """Convert a fit."""
    figures = record.figures
    message = pb.Adaptation(
        id=record.id,
        active=record.active,
        reason=record.reason,
        frozen=record.frozen,
        instructions=figures.instructions,
        outcomes=figures.outcomes,
        unused_outcomes=record.unused,
        log_loss_before=figures.log_loss_before,
        log_loss_after=figures.log_loss_after,
        log_loss_standard_error=figures.standard_error,
        fit_seconds=figures.seconds,
    )
    if figures.as_of > 0:
        message.as_of.FromMicroseconds(round(1e6 * figures.as_of))
    return message


def explanation(
    decision: RecentDecision,
    adaptation: Adaptation | None,
    neighbors: Sequence[Neighbor],
    table: Table,
) -> pb.ExplainDecisionResponse:
    """Explain a decision by the adaptation and the table that are served now."""
    scored = decision.scored
    ids, base = RecentDecisions.before_correction(scored, table)
    is_served = adaptation is not None and adaptation.decides
    response = pb.ExplainDecisionResponse(decided_by=decision.adaptation_id)
    corrected = None
    if adaptation is not None and is_served:
        response.adaptation_id = adaptation.id
        corrected = adaptation.correct(scored.embedding.astype(np.float32), base, ids)
    for i, identifier in enumerate(ids):
        response.candidates.append(_explained(identifier, i, base, corrected))
    response.candidates.sort(key=lambda each: (-each.probability, each.candidate))
    for neighbor in neighbors:
        message = response.neighbors.add(
            similarity=neighbor.similarity,
            scores={NAME_PREFIX + name: score for name, score in neighbor.scores.items()},
            category=neighbor.category,
            provenance=neighbor.provenance,
        )
        message.recorded_at.FromMicroseconds(round(1e6 * neighbor.recorded_at))
    _explain_match(response, decision, table)
    return response


def _explain_match(
    response: pb.ExplainDecisionResponse, decision: RecentDecision, table: Table
) -> None:
    """Add the match with the tests of the candidates that `table` still has."""
    if table.match is None or not response.candidates:
        return
    embedding = decision.scored.embedding.astype(np.float32)
    added = table.match.log_odds(embedding[None, :])[0]
    rows = [table.rows.get(c.candidate.removeprefix(NAME_PREFIX)) for c in response.candidates]
    for message, row in zip(response.candidates, rows, strict=True):
        if row is not None:
            message.match = float(added[row])
    if rows[0] is not None:
        for near in table.match.nearest(embedding, rows[0], MAX_TASKS):
            response.tasks.add(
                task_keywords=near.task, weight=near.weight, by_questions=near.by_questions
            )


def _explained(
    identifier: str, i: int, base: Float32Array, corrected: CorrectedScores | None
) -> pb.ExplainedCandidate:
    """Return the parts of the candidate at position i."""
    name, p = NAME_PREFIX + identifier, float(base[i])
    if corrected is None:
        return pb.ExplainedCandidate(candidate=name, base_probability=p, probability=p)
    return pb.ExplainedCandidate(
        candidate=name,
        base_probability=p,
        probability=float(corrected.p[i]),
        standard_error=float(corrected.standard_error[i]),
        offset=float(corrected.offset[i]),
        common=float(corrected.common[i]),
        relative=float(corrected.relative[i]),
    )
