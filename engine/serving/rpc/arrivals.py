"""What happens to a call between its headers and its method: its message arrives and is parsed.

gRPC buffers a message as soon as something asks for it, so that many messages that were sent but
for their last bytes would fill the memory. Requests are therefore asked for a few at a time, and
callers take turns. Methods with one request are served as methods with a stream of requests: only
for those does grpc.aio leave the reading to the handler.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from engine.api.errors import (
    InvalidInputError,
    ModelsatError,
    TooManyCallsError,
    Violation,
    WaitTooLongError,
)
from engine.api.limits import ROUTER_MESSAGE_BYTES
from engine.api.request_context import PRINCIPAL, REFUSAL
from engine.serving.rpc.connections import ConnectionWatch
from engine.serving.rpc.fair_slots import RETRY_S, FairSlots
from engine.serving.rpc.half_sent import HalfSentMessages
from engine.serving.rpc.interceptors import (
    SERVICE_PREFIXES,
    HandlerWrapper,
    MalformedRequest,
    RefusedRequest,
    behavior_of,
    surround,
)
from engine.serving.rpc.message_memory import ENTRY_BYTES, MessageMemory, Share, memory_of
from engine.serving.rpc.status import pushback, to_status
from engine.serving.rpc.wire import STEP_BYTES, parse_in_steps
from engine.serving.telemetry.metrics import Samples

RECEIVING_BYTES = 40 * 1024 * 1024  # of messages that are arriving, on one address
PROBES_RECEIVED = 4  # of methods that need no token, whose callers delay no others
PARSED_AT_ONCE = 2  # messages of more than STEP_BYTES, which may take 40 times as much parsed
MAX_WAITING = 16_384  # calls whose messages are not asked for yet
RECEIVE_S = 20.0  # for a message to arrive
PATIENCE_S = 0.25  # the same once others wait and no message is complete for as long
MAX_REQUEST_STREAMS = 64  # of StreamRoute: gRPC may buffer a message of each
READS_AT_ONCE, MAX_READS_WAITING = 4, 4096
STREAMS = "/modelsat."
STANDARD = "/grpc."  # health and reflection: open to all, so they keep no connection open
READS = frozenset(
    {
        "/modelsat.v1.RouterService/GetServerInfo",
        "/modelsat.v1.CandidateService/GetCandidate",
        "/modelsat.v1.CandidateService/ListCandidates",
        "/modelsat.v1.CandidateService/ListRevisions",
    }
)
ROUTE = "/modelsat.v1.RouterService/Route"
Parse = Callable[[bytes], Any]


class Arrivals(HandlerWrapper):
    """Receive the requests of one address. Goes first among the interceptors: the others see
    a method with one request as what it is, and count what is refused here.

    max_message_bytes: of the address. half_sent: of the server. note_caller: notes from a call's
    context who it comes from. routes: of known principals, whose calls wait for their turn here:
    refusing one that is tried again at once costs more. max_string_bytes: see parse_in_steps.
    receiving, probes, parsing, reads, streams: what waits for a slot. memory: of the messages.
    slow: calls refused because their message did not arrive in time.
    """

    def __init__(
        self,
        connections: ConnectionWatch,
        half_sent: HalfSentMessages,
        max_message_bytes: int,
        note_caller: Callable[[Any], None],
        routes: FairSlots | None = None,
        max_string_bytes: int = ROUTER_MESSAGE_BYTES,
    ) -> None:
        super().__init__()
        self._connections = connections
        self._half_sent = half_sent
        self._note_caller = note_caller
        self._streams_of: Counter[str] = Counter()  # caller -> calls of StreamRoute
        slots = max(2, RECEIVING_BYTES // max_message_bytes)
        self.receiving = FairSlots(slots, MAX_WAITING, "messages arrive")
        self.probes = FairSlots(PROBES_RECEIVED, MAX_WAITING, "probes arrive")
        self.parsing = FairSlots(PARSED_AT_ONCE, MAX_WAITING, "large messages")
        self.memory = MessageMemory()
        self.reads = FairSlots(READS_AT_ONCE, MAX_READS_WAITING, "calls read the table")
        self.streams = FairSlots(MAX_REQUEST_STREAMS, MAX_REQUEST_STREAMS, "streams of requests")
        self.routes = routes
        self._max_string_bytes = max_string_bytes
        self.slow = 0

    def refusals(self) -> Mapping[str, int]:
        """Return place -> calls refused there."""
        return {
            "receiving": self.receiving.refused,
            "probes": self.probes.refused,
            "reads": self.reads.refused,
            "streams": self.streams.refused,
            "slow_message": self.slow,
            "parsing": self.parsing.refused,
            "memory": self.memory.refused,
        }

    def wrap(self, handler: Any, method: str) -> Any:
        """See HandlerWrapper."""
        receive = self._open_stream if handler.request_streaming else self._receive
        parse = handler.request_deserializer

        @asynccontextmanager
        async def around(messages: Any, context: Any) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                yield await receive(messages, context, parse, method, stack)

        kind = "stream_stream" if handler.response_streaming else "stream_unary"
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            surround(behavior_of(handler), around),
            response_serializer=handler.response_serializer,
        )

    async def _receive(
        self, messages: Any, context: Any, parse: Parse, method: str, stack: AsyncExitStack
    ) -> Any:
        """Return the one request of a call, or what stands for one that was refused."""
        caller = self._begin(context, method, parse, stack)
        lane = self.receiving if method.startswith(SERVICE_PREFIXES) else self.probes
        try:
            async with lane.slot(caller):
                raw = await self._read(messages, lane)
            self._half_sent.arrived(context.peer(), len(raw))
            share = Share(self.memory, caller)
            stack.callback(share.release)
            share.resize(len(raw))
            if method in READS:
                await stack.enter_async_context(self.reads.slot(caller))
            elif method == ROUTE and self.routes is not None and PRINCIPAL.get():
                await self._take_turn(self.routes, context.time_remaining(), stack)
            return await self._parsed(raw, parse, caller, share)
        except ModelsatError as error:
            return await _refused(context, method, error)

    async def _take_turn(
        self, routes: FairSlots, left_s: float | None, stack: AsyncExitStack
    ) -> None:
        """Wait for a turn. A call whose deadline is too near goes on with a REFUSAL instead, since
        its method may answer without a score. left_s: until the deadline, None without one."""
        try:
            await stack.enter_async_context(routes.slot(PRINCIPAL.get(), left_s))
        except WaitTooLongError as error:
            REFUSAL.set(error)

    async def _open_stream(
        self, messages: Any, context: Any, parse: Parse, method: str, stack: AsyncExitStack
    ) -> Any:
        """Return an iterator over the requests of a call."""
        caller, peer = self._begin(context, method, parse, stack), context.peer()
        refusal = None
        # Without a parser it is a call that was refused: it must not keep a caller out.
        if parse is not None and method.startswith(STREAMS):
            try:
                await self._take_stream(caller, stack)
            except TooManyCallsError as error:
                refusal = await _refused(context, method, error)

        share = Share(self.memory, caller)
        stack.callback(share.release)

        async def requests() -> AsyncIterator[Any]:
            if refusal is not None:
                yield refusal
                return
            while True:
                share.release()  # who takes the next message has answered a large one
                try:
                    async with asyncio.timeout(None) as limit:
                        with self._half_sent.waiting(peer, caller, limit):
                            raw = await anext(messages, None)
                except TimeoutError:
                    words = "The stream was ended to make room for the messages of others."
                    yield await _refused(context, method, TooManyCallsError(words, RETRY_S))
                    return
                if raw is None:
                    return
                self._half_sent.arrived(peer, len(raw))
                try:
                    share.resize(len(raw))
                    request = await self._parsed(raw, parse, caller, share)
                except ModelsatError as error:
                    request = RefusedRequest(error.with_traceback(None))
                yield request

        return requests()

    def _begin(self, context: Any, method: str, parse: Parse, stack: AsyncExitStack) -> str:
        """Note a call while it lasts; return its caller: the principal, else the peer."""
        peer: str = context.peer()
        stack.enter_context(self._half_sent.calling(peer))
        self._note_caller(context)
        # Calls that were refused, which have no parser, keep no connection open either.
        if parse is not None and not method.startswith(STANDARD):
            stack.enter_context(self._connections.calling(peer, PRINCIPAL.get()))
        return PRINCIPAL.get() or peer

    async def _take_stream(self, caller: str, stack: AsyncExitStack) -> None:
        """Take a place for a stream, from a caller who has more of them if there is none left."""
        if self.streams.is_full and not self._half_sent.end_one_for(caller, self._streams_of):
            raise self.streams.refusal()
        self._streams_of[caller] += 1
        stack.callback(self._leave_stream, caller)
        await stack.enter_async_context(self.streams.slot(caller))

    def _leave_stream(self, caller: str) -> None:
        self._streams_of[caller] -= 1
        if not self._streams_of[caller]:
            del self._streams_of[caller]

    async def _read(self, messages: Any, lane: FairSlots) -> bytes:
        """Wait for a message; not for long if that keeps others in the lane from sending theirs."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        try:
            async with asyncio.timeout(RECEIVE_S) as limit:

                def hurry() -> None:
                    nonlocal timer
                    if lane.stalled_s >= PATIENCE_S:
                        limit.reschedule(loop.time())
                    else:
                        timer = loop.call_later(PATIENCE_S, hurry)

                timer = loop.call_later(PATIENCE_S, hurry)
                raw = await anext(messages, None)
        except TimeoutError:
            self.slow += 1
            words = "The request did not arrive in time; send it in one piece."
            raise TooManyCallsError(words, RETRY_S) from None
        finally:
            if timer is not None:
                timer.cancel()
        if raw is None:
            raise InvalidInputError(Violation("request", "is missing; send one message."))
        received: bytes = raw
        return received

    async def _parsed(self, raw: bytes, parse: Parse, caller: str, share: Share) -> Any:
        """Parse a message, a large one in its caller's turn, and count what it takes."""
        async with AsyncExitStack() as turn:
            if len(raw) > STEP_BYTES:
                await turn.enter_async_context(self.parsing.slot(caller))
            message = await parsed(raw, parse, self._max_string_bytes)
            if len(raw) > STEP_BYTES // ENTRY_BYTES:  # a smaller one never counts, see Share
                share.resize(memory_of(message, len(raw)))
            return message


def arrival_samples(
    arrivals: Sequence[Arrivals], half_sent: HalfSentMessages, connections: ConnectionWatch
) -> dict[str, Callable[[], Samples]]:
    """Return metric -> samples of what was refused on the addresses of a server."""

    def refused() -> Samples:
        places: Counter[str] = Counter({"half_sent": half_sent.ended})
        for each in arrivals:
            places.update(each.refusals())
        lanes = {each.routes for each in arrivals if each.routes is not None}  # shared
        places["routes"] = sum(lane.refused for lane in lanes)
        return {(place,): count for place, count in places.items()}

    return {
        "modelsat_arrivals_refused_total": refused,
        "modelsat_connections_closed_total": lambda: {(): connections.closed},
    }


async def parsed(raw: bytes, parse: Parse, max_string_bytes: int) -> Any:
    """Parse a message, a large one in steps; see parse_in_steps for what it raises.

    parse: returns a MalformedRequest for what is no message.
    """
    if len(raw) <= STEP_BYTES or parse is None:
        return raw if parse is None else parse(raw)
    message = type(parse(b""))()
    await asyncio.sleep(0)  # copying the message out of gRPC has taken up to 15 ms already
    try:
        await parse_in_steps(message, raw, max_string_bytes)
    except (DecodeError, ValueError) as error:
        return MalformedRequest(type(error).__name__)
    return message


async def _refused(context: Any, method: str, error: ModelsatError) -> RefusedRequest:
    """Let the method's own interceptors end the call, or end it here if it has none."""
    if method.startswith(SERVICE_PREFIXES):
        # Its traceback would keep the message in memory until the next full garbage collection.
        return RefusedRequest(error.with_traceback(None))
    status = to_status(error)
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, (*rich.trailing_metadata, *pushback(status)))
    raise AssertionError("abort() raises")
