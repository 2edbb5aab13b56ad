"""RouterService: convert messages for Router and back, for one request, a batch or a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message

from engine.api.candidate import NAME_PREFIX
from engine.api.conversation.reading import ConversationReading
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import MAX_BATCH_REQUESTS
from engine.api.policy import DecisionKind
from engine.api.proto import policy_from, reading_from, session_from
from engine.api.request_context import PRINCIPAL, SEVERAL
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.routing.decision import Decision
from engine.routing.router import Router
from engine.serving.auth.outcome_gate import OutcomeGate
from engine.serving.outcome_requests import comparison_from, outcome_from
from engine.serving.rpc.fair_slots import FairSlots
from engine.serving.rpc.message_memory import memory_of
from engine.serving.rpc.status import failure_status, reason_of

INLINE_READ_BYTES, INLINE_READ_TURNS = 16 * 1024, 200  # what is larger is read in a thread
_READERS = ThreadPoolExecutor(1, "conversations")
_READING = FairSlots(1, 16_384, "conversations are read")  # callers take turns
MAX_CONCURRENT = 64  # requests of one batch or stream, so that it leaves room in the queue
PLACE_BYTES = 8192  # of requests of one stream in progress, so that a large one is alone
MAX_STREAM_ID_CHARS = 64
Info = Callable[[], pb.GetServerInfoResponse]
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Message, Message]


class RouterService(router_service_pb2_grpc.RouterServiceServicer):
    """See proto/modelsat/v1/router_service.proto; errors are mapped by StatusInterceptor."""

    def __init__(
        self, router: Router, info: Info, max_text_bytes: int, outcomes: OutcomeGate
    ) -> None:
        self._router = router
        self._max_text_bytes = max_text_bytes
        self._info = info
        self._outcomes = outcomes
        self._turn = asyncio.Lock()

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        """Select a candidate."""
        return await route(self._router, request, self._max_text_bytes, _deadline(context))

    async def BatchRoute(self, request: pb.BatchRouteRequest, context: Context) -> bytes:
        """Select a candidate for each request; one that fails does not fail the others."""
        count = len(request.requests)
        if not 1 <= count <= MAX_BATCH_REQUESTS:
            raise InvalidInputError(
                Violation("requests", f"has {count} entries; expected 1 to {MAX_BATCH_REQUESTS}.")
            )
        deadline, slots = _deadline(context), asyncio.Semaphore(MAX_CONCURRENT)

        async def one(each: pb.RouteRequest) -> bytes:
            async with slots:
                result = await self._result(each, deadline, "BatchRoute")
            return pb.BatchRouteResponse(results=[result]).SerializeToString()  # a part of it

        async with asyncio.TaskGroup() as group:  # cancels all when the caller gives up
            tasks = [group.create_task(one(each)) for each in request.requests]
        return b"".join(task.result() for task in tasks)

    async def StreamRoute(
        self, requests: AsyncIterator[pb.StreamRouteRequest], context: Context
    ) -> AsyncIterator[pb.StreamRouteResponse]:
        """Select a candidate for each request as it arrives."""
        deadline = _deadline(context)

        async def one(each: pb.StreamRouteRequest) -> pb.StreamRouteResponse:
            if len(each.id) > MAX_STREAM_ID_CHARS:
                wrong = Violation(
                    "id", f"is {len(each.id)} characters; at most {MAX_STREAM_ID_CHARS}."
                )
                result = _error(InvalidInputError(wrong), "StreamRoute")
            elif each.HasField("outcome"):
                return await self._streamed_outcome(each, deadline)
            else:
                result = await self._result(each.request, deadline, "StreamRoute")
            return pb.StreamRouteResponse(id=each.id[:MAX_STREAM_ID_CHARS], result=result)

        async with aclosing(map_unordered(requests, one, MAX_CONCURRENT, _weight)) as answers:
            async for answer in answers:
                yield answer

    async def RecordOutcome(
        self, request: pb.RecordOutcomeRequest, context: Context
    ) -> pb.RecordOutcomeResponse:
        """Record an outcome; see OutcomeGate."""
        return await self._record(request, _deadline(context))

    async def RecordComparison(
        self, request: pb.RecordComparisonRequest, context: Context
    ) -> pb.RecordComparisonResponse:
        """Record the outcomes of several candidates; see OutcomeGate."""
        outcomes = comparison_from(request, self._max_text_bytes)
        recorded = await self._outcomes.record(outcomes, request.text, _deadline(context))
        return pb.RecordComparisonResponse(recorded=recorded)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Describe the server."""
        return self._info()

    async def _record(
        self, request: pb.RecordOutcomeRequest, deadline: float
    ) -> pb.RecordOutcomeResponse:
        outcome = outcome_from(request, self._max_text_bytes)
        recorded = await self._outcomes.record([outcome], request.text, deadline)
        return pb.RecordOutcomeResponse(recorded=bool(recorded))

    async def _streamed_outcome(
        self, each: pb.StreamRouteRequest, deadline: float
    ) -> pb.StreamRouteResponse:
        """Record the outcome of a stream's message, and return the answer or the error."""
        try:
            if each.HasField("request"):
                problem = "must not be set together with request; send two messages."
                raise InvalidInputError(Violation("outcome", problem))
            recorded = await self._record(each.outcome, deadline)
            return pb.StreamRouteResponse(id=each.id, recorded=recorded)
        except Exception as error:  # noqa: BLE001 - no request may end the server
            return pb.StreamRouteResponse(id=each.id, result=_error(error, "StreamRoute"))

    async def _result(
        self, request: pb.RouteRequest, deadline: float, method: str
    ) -> pb.RouteResult:
        SEVERAL.set(True)
        async with self._turn:  # one request of a batch or stream in each step of the event loop
            await asyncio.sleep(0)
        try:
            response = await route(self._router, request, self._max_text_bytes, deadline)
            return pb.RouteResult(response=response)
        except Exception as error:  # noqa: BLE001 - no request may end the server
            return _error(error, method)


KINDS: dict[DecisionKind, pb.DecisionKind] = {
    "ranked": pb.DECISION_KIND_RANKED,
    "session_affinity": pb.DECISION_KIND_SESSION_AFFINITY,
    "defaulted": pb.DECISION_KIND_DEFAULTED,
    "fallback": pb.DECISION_KIND_FALLBACK,
    "explored": pb.DECISION_KIND_EXPLORED,
}


def response_from(decision: Decision) -> pb.RouteResponse:
    """Return the response of Route."""
    response = pb.RouteResponse(
        selected=decision.selected.name,
        reason=decision.reason,
        revision=decision.revision,
        revision_token=decision.revision_token,
        input_tokens=decision.prompt.input_tokens,
        truncated=decision.prompt.truncated,
        ood_score=decision.prompt.ood_score,
        decision_id=decision.id,
        kind=KINDS[decision.kind],
        token_count_method=decision.prompt.token_count_method,
        uncounted=decision.prompt.uncounted,
        adaptation_id=decision.adaptation_id,
        propensity=decision.propensity,
        recent_failures=decision.prompt.failures,
    )
    for ranked in decision.ranking:
        response.ranking.add(
            candidate=ranked.candidate.name,
            probability=ranked.probability,
            expected_cost_usd=ranked.expected_cost_usd,
            utility=ranked.utility,
            base_probability=ranked.base_probability,
            standard_error=ranked.standard_error,
            similar_outcomes=ranked.similar_outcomes,
        )
    for identifier, reason in decision.excluded.items():
        response.excluded.add(candidate=NAME_PREFIX + identifier, reason=reason)
    for phase, seconds in decision.timing.items():
        getattr(response.timing, phase).FromNanoseconds(int(seconds * 1e9))
    return response


async def route(
    router: Router, request: pb.RouteRequest, max_text_bytes: int, deadline: float
) -> pb.RouteResponse:
    """Answer one request of any transport. deadline: of time.monotonic()."""
    reading = await _read(router, request, max_text_bytes)
    if request.min_revision_token:
        await router.require_revision(request.min_revision_token, deadline)
    decision = await router.route(
        reading.ask,
        policy_from(request.policy),
        context=reading.context,
        deadline=deadline,
        session=reading.session_of(session_from(request)),
        dry_run=request.dry_run,
        failures=reading.failures,
    )
    return response_from(decision)


async def _read(
    router: Router, request: pb.RouteRequest, max_text_bytes: int
) -> ConversationReading:
    """Read a long text or conversation in a thread, so that the event loop stays responsive."""
    call = partial(reading_from, request, max_text_bytes, router.token_counter)
    form, spoken = request.WhichOneof("instruction"), request.conversation
    is_large = (form == "text" and len(request.text) > INLINE_READ_BYTES) or (
        form == "conversation"
        and (len(spoken.messages) > INLINE_READ_TURNS or spoken.ByteSize() > INLINE_READ_BYTES)
    )
    if not is_large:
        return call()
    async with _READING.slot(PRINCIPAL.get()):
        return await asyncio.get_running_loop().run_in_executor(_READERS, call)


def _weight(request: pb.StreamRouteRequest) -> int:
    """Return how many of a stream's MAX_CONCURRENT places a request takes, all for a large one."""
    size = memory_of(request, request.ByteSize())
    return min(MAX_CONCURRENT, 1 + size // PLACE_BYTES)


def _error(error: Exception, method: str) -> pb.RouteResult:
    status = failure_status(error, method)
    error_message = pb.RouteError(
        code=status.code, message=status.message, reason=reason_of(status)
    )
    return pb.RouteResult(error=error_message)


def _deadline(context: Context) -> float:
    """Return the call's deadline as of time.monotonic()."""
    left = context.time_remaining()
    return float("inf") if left is None else time.monotonic() + left


RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


async def map_unordered(
    requests: AsyncIterator[RequestT],
    call: Callable[[RequestT], Awaitable[ResponseT]],
    limit: int,
    weight: Callable[[RequestT], int] = lambda _: 1,
) -> AsyncGenerator[ResponseT, None]:
    """Call `call` for every request, and yield the responses in order of completion.

    At most `limit` requests are in progress, responses that the reader has not taken included, so
    that a slow reader slows the sender down. What runs is cancelled when the iteration ends or is
    closed; close it (contextlib.aclosing) instead of leaving that to the garbage collector. `call`
    must not raise. weight: of a request that counts as several, at most `limit`.
    """
    slots = asyncio.Semaphore(limit)
    ready: asyncio.Queue[tuple[ResponseT, int] | None] = asyncio.Queue()
    running: set[asyncio.Task[None]] = set()

    async def work(request: RequestT, places: int) -> None:
        ready.put_nowait((await call(request), places))

    async def read() -> None:
        try:
            await slots.acquire()
            async for request in requests:
                places = weight(request)
                for _ in range(places - 1):
                    await slots.acquire()
                task = asyncio.create_task(work(request, places))
                running.add(task)
                task.add_done_callback(running.discard)
                await slots.acquire()
            await asyncio.gather(*running)
        finally:
            ready.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (answer := await ready.get()) is not None:
            response, places = answer
            yield response
            for _ in range(places):
                slots.release()
        await reader  # raises what the transport raised
    finally:
        for task in (reader, *running):
            task.cancel()
        await asyncio.gather(reader, *running, return_exceptions=True)
