"""What the clients return of the adaptation, and the methods that read and steer it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from engine.api.candidate import NAME_PREFIX
from engine.client.errors import translate_value_errors
from engine.pb import adaptation_service_pb2 as pb
from engine.pb import adaptation_service_pb2_grpc


@dataclass(frozen=True)
class AdaptationInfo:
    """What a server has learned from outcomes.

    Attributes:
        id: Identity; the same outcomes give the same one on every server. "" if there is none.
        active: Whether it corrects probabilities.
        reason: Why it does or does not, in a sentence.
        as_of: When its newest outcome was recorded, in UTC; None if there is none.
        frozen: Whether outcomes recorded from now on are ignored.
        instructions: Number of instructions that it was fitted to.
        outcomes: Number of outcomes by provenance: "comparison", "explored" or "chosen".
        unused_outcomes: Recorded outcomes that it does not use, by reason.
        log_loss_before: Mean log loss of left-out outcomes without the correction.
        log_loss_after: The same with it.
        log_loss_standard_error: Standard error of the difference.
        fit_seconds: Seconds that the fit took.
    """

    id: str
    active: bool
    reason: str
    as_of: datetime | None
    frozen: bool
    instructions: int
    outcomes: Mapping[str, int]
    unused_outcomes: Mapping[str, int]
    log_loss_before: float
    log_loss_after: float
    log_loss_standard_error: float
    fit_seconds: float


@dataclass(frozen=True)
class ExplainedProbability:
    """What made up the probability of a candidate; the last four are in log-odds.

    Attributes:
        candidate: ID of the candidate.
        base_probability: By the weights and the match, before the correction by outcomes.
        probability: Corrected.
        standard_error: Of the corrected probability.
        offset: Part by the candidate's outcomes on all instructions.
        common: Part by all candidates' outcomes on similar instructions.
        relative: Part by the candidate's outcomes on similar instructions.
        match: Part of base_probability by its accuracies on the tasks near the instruction.
    """

    candidate: str
    base_probability: float
    probability: float
    standard_error: float
    offset: float
    common: float
    relative: float
    match: float


@dataclass(frozen=True)
class MatchedTask:
    """A task of an aptitude test that is near the instruction of a decision.

    Attributes:
        task: Its keywords.
        weight: Its share of the match, in [0, 1].
        by_questions: Whether it is placed by its questions, and not by its keywords.
    """

    task: str
    weight: float
    by_questions: bool


@dataclass(frozen=True)
class SimilarInstruction:
    """A remembered instruction that is similar to that of a decision.

    Attributes:
        similarity: Cosine of their embeddings.
        scores: Score by candidate ID.
        category: As recorded; "" if it was not.
        recorded_at: When it was recorded, in UTC.
        provenance: "comparison", "explored" or "chosen".
    """

    similarity: float
    scores: Mapping[str, float]
    category: str
    recorded_at: datetime
    provenance: str


@dataclass(frozen=True)
class DecisionExplanation:
    """Why the probabilities of a decision are not those of the weights.

    Attributes:
        candidates: The candidates of the decision, highest probability first.
        adaptation_id: The adaptation that is served now, whose parts these are; "" if none is.
        decided_by: The adaptation that decided; "" if the weights alone did.
        neighbors: The nearest remembered instructions, nearest first.
        tasks: The tasks nearest to the instruction of the first candidate's test, nearest first.
    """

    candidates: tuple[ExplainedProbability, ...]
    adaptation_id: str
    decided_by: str
    neighbors: tuple[SimilarInstruction, ...]
    tasks: tuple[MatchedTask, ...]


def adaptation_from(message: pb.Adaptation) -> AdaptationInfo:
    """Convert an adaptation."""
    names = AdaptationInfo.__annotations__
    values = {name: getattr(message, name) for name in names}
    as_of = message.as_of.ToDatetime(tzinfo=UTC) if message.HasField("as_of") else None
    counts = {name: dict(values[name]) for name in ("outcomes", "unused_outcomes")}
    return AdaptationInfo(**values | counts | {"as_of": as_of})


def explanation_from(response: pb.ExplainDecisionResponse) -> DecisionExplanation:
    """Convert the response of ExplainDecision."""
    parts = [name for name in ExplainedProbability.__annotations__ if name != "candidate"]
    return DecisionExplanation(
        tuple(
            ExplainedProbability(
                each.candidate.removeprefix(NAME_PREFIX),
                **{name: getattr(each, name) for name in parts},
            )
            for each in response.candidates
        ),
        response.adaptation_id,
        response.decided_by,
        tuple(
            SimilarInstruction(
                each.similarity,
                {name.removeprefix(NAME_PREFIX): s for name, s in sorted(each.scores.items())},
                each.category,
                each.recorded_at.ToDatetime(tzinfo=UTC),
                each.provenance,
            )
            for each in response.neighbors
        ),
        tuple(
            MatchedTask(each.task_keywords, each.weight, each.by_questions)
            for each in response.tasks
        ),
    )


@translate_value_errors()
def list_request(count: int) -> pb.ListAdaptationsRequest:
    """Build a request."""
    return pb.ListAdaptationsRequest(page_size=count)


@translate_value_errors()
def adaptation_rollback_request(identifier: str) -> pb.RollbackAdaptationRequest:
    """Build a request."""
    return pb.RollbackAdaptationRequest(id=identifier)


@translate_value_errors()
def explain_request(decision_id: str) -> pb.ExplainDecisionRequest:
    """Build a request."""
    return pb.ExplainDecisionRequest(decision_id=decision_id)


class AdaptationCalls:
    """The methods of Client that read and steer the adaptation."""

    _adaptations: adaptation_service_pb2_grpc.AdaptationServiceStub
    _call: Callable[[Any, Any], Any]

    def adaptation(self) -> AdaptationInfo:
        """Return what the server has learned from outcomes and decides by.

        Example:
            print(client.adaptation().reason)
        """
        call = self._call(self._adaptations.GetAdaptation, pb.GetAdaptationRequest())
        return adaptation_from(call)

    def adaptation_history(self, count: int = 20) -> list[AdaptationInfo]:
        """Return the last `count` fits, newest first.

        Example:
            print([fit.instructions for fit in client.adaptation_history()])
        """
        page = self._call(self._adaptations.ListAdaptations, list_request(count))
        return [adaptation_from(each) for each in page.adaptations]

    def freeze_adaptation(self) -> AdaptationInfo:
        """Ignore outcomes that are recorded from now on; they are kept.

        Example:
            print(client.freeze_adaptation().frozen)
            client.unfreeze_adaptation()
        """
        call = self._call(self._adaptations.FreezeAdaptation, pb.FreezeAdaptationRequest())
        return adaptation_from(call)

    def unfreeze_adaptation(self) -> AdaptationInfo:
        """Learn from all outcomes since the last reset again.

        Example:
            print(client.unfreeze_adaptation().frozen)
        """
        call = self._call(self._adaptations.UnfreezeAdaptation, pb.UnfreezeAdaptationRequest())
        return adaptation_from(call)

    def rollback_adaptation(self, adaptation_id: str) -> AdaptationInfo:
        """Return to an earlier fit, and freeze.

        Args:
            adaptation_id: `id` of a fit in `adaptation_history`.

        Example:
            for fit in client.adaptation_history(1):
                client.rollback_adaptation(fit.id)
                client.unfreeze_adaptation()
        """
        request = adaptation_rollback_request(adaptation_id)
        return adaptation_from(self._call(self._adaptations.RollbackAdaptation, request))

    def reset_adaptation(self) -> AdaptationInfo:
        """Ignore every outcome that was recorded before; they can still be exported.

        Example:
            print(client.reset_adaptation().instructions)
        """
        call = self._call(self._adaptations.ResetAdaptation, pb.ResetAdaptationRequest())
        return adaptation_from(call)

    def explain_decision(self, decision_id: str) -> DecisionExplanation:
        """Return which remembered outcomes changed the probabilities of a recent decision.

        Args:
            decision_id: Of a decision of the last minutes, see `RouteDecision.decision_id`.

        Example:
            decision = client.route("Who wrote Faust?")
            for each in client.explain_decision(decision.decision_id).candidates:
                print(each.candidate, each.base_probability, each.probability)
        """
        request = explain_request(decision_id)
        return explanation_from(self._call(self._adaptations.ExplainDecision, request))


class AsyncAdaptationCalls:
    """The methods of AsyncClient that read and steer the adaptation."""

    _adaptations: adaptation_service_pb2_grpc.AdaptationServiceStub
    _call: Callable[[Any, Any], Awaitable[Any]]

    async def adaptation(self) -> AdaptationInfo:
        """Return what the server has learned; see `Client.adaptation`.

        Example:
            print((await client.adaptation()).reason)
        """
        call = await self._call(self._adaptations.GetAdaptation, pb.GetAdaptationRequest())
        return adaptation_from(call)

    async def adaptation_history(self, count: int = 20) -> list[AdaptationInfo]:
        """Return the last fits; see `Client.adaptation_history`.

        Example:
            print([fit.instructions for fit in await client.adaptation_history()])
        """
        page = await self._call(self._adaptations.ListAdaptations, list_request(count))
        return [adaptation_from(each) for each in page.adaptations]

    async def freeze_adaptation(self) -> AdaptationInfo:
        """Ignore outcomes from now on; see `Client.freeze_adaptation`.

        Example:
            print((await client.freeze_adaptation()).frozen)
            await client.unfreeze_adaptation()
        """
        request = pb.FreezeAdaptationRequest()
        return adaptation_from(await self._call(self._adaptations.FreezeAdaptation, request))

    async def unfreeze_adaptation(self) -> AdaptationInfo:
        """Learn from all outcomes again; see `Client.unfreeze_adaptation`.

        Example:
            print((await client.unfreeze_adaptation()).frozen)
        """
        request = pb.UnfreezeAdaptationRequest()
        return adaptation_from(await self._call(self._adaptations.UnfreezeAdaptation, request))

    async def rollback_adaptation(self, adaptation_id: str) -> AdaptationInfo:
        """Return to an earlier fit; see `Client.rollback_adaptation`.

        Example:
            for fit in await client.adaptation_history(1):
                await client.rollback_adaptation(fit.id)
                await client.unfreeze_adaptation()
        """
        request = adaptation_rollback_request(adaptation_id)
        return adaptation_from(await self._call(self._adaptations.RollbackAdaptation, request))

    async def reset_adaptation(self) -> AdaptationInfo:
        """Ignore every outcome that was recorded before; see `Client.reset_adaptation`.

        Example:
            print((await client.reset_adaptation()).instructions)
        """
        request = pb.ResetAdaptationRequest()
        return adaptation_from(await self._call(self._adaptations.ResetAdaptation, request))

    async def explain_decision(self, decision_id: str) -> DecisionExplanation:
        """Return what changed a recent decision; see `Client.explain_decision`.

        Example:
            decision = await client.route("Who wrote Faust?")
            for each in (await client.explain_decision(decision.decision_id)).candidates:
                print(each.candidate, each.base_probability, each.probability)
        """
        request = explain_request(decision_id)
        return explanation_from(await self._call(self._adaptations.ExplainDecision, request))
