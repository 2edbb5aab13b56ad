"""Kind: repeated entries of two bytes take forty times as much memory once they are parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from engine.api.errors import TooManyCallsError
from engine.api.request_context import PRINCIPAL
from engine.pb import candidate_pb2
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import router_service_pb2 as rpb
from engine.serving.rpc.arrivals import Arrivals
from engine.serving.rpc.connections import ConnectionWatch
from engine.serving.rpc.half_sent import HalfSentMessages
from engine.serving.rpc.interceptors import RefusedRequest
from engine.serving.rpc.message_memory import (
    ENTRY_BYTES,
    MAX_ENTERED,
    MessageMemory,
    Share,
    memory_of,
)
from engine.serving.rpc.router_service import INLINE_READ_BYTES, map_unordered, route
from engine.serving.rpc.wire import STEP_BYTES

TURNS = rpb.Conversation(messages=[rpb.Message()] * 3000)
FLOOD = rpb.RouteRequest(conversation=TURNS)


@pytest.mark.parametrize(
    ("message", "entries"),
    [
        (rpb.RouteRequest(text="a" * 1000), 0),
        (FLOOD, 3000),
        (rpb.BatchRouteRequest(requests=[FLOOD] * 20), 20 + 20 * 3000),
        (rpb.StreamRouteRequest(request=FLOOD), 3000),
        (
            cpb.BatchReplaceCandidatesRequest(
                candidates=[candidate_pb2.Candidate(aptitude=[candidate_pb2.TaskResult()] * 50)]
                * 40
            ),
            40 + 40 * 50,
        ),
        # More than any method takes: each is refused before its own entries matter.
        (rpb.BatchRouteRequest(requests=[rpb.RouteRequest()] * (MAX_ENTERED + 1)), MAX_ENTERED + 1),
    ],
    ids=["text", "turns", "batch", "stream", "table", "too many"],
)
def test_what_a_message_takes_is_estimated_by_its_entries(message: Message, entries: int) -> None:
    assert memory_of(message, 7) == 7 + ENTRY_BYTES * entries


def test_one_caller_leaves_half_of_the_memory_to_the_others() -> None:
    memory = MessageMemory(10 * STEP_BYTES)
    first, second, other = (Share(memory, caller) for caller in "aab")
    first.resize(4 * STEP_BYTES)
    with pytest.raises(TooManyCallsError):
        second.resize(2 * STEP_BYTES)
    second.resize(STEP_BYTES)  # small messages are not counted
    other.resize(5 * STEP_BYTES)
    with pytest.raises(TooManyCallsError):
        Share(memory, "c").resize(2 * STEP_BYTES)
    assert (memory.refused, memory.used) == (2, 9 * STEP_BYTES)
    for share in (first, second, other):
        share.release()
    assert memory.used == 0


class _Context:
    """What Arrivals needs of a call's context."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> None:
        return None


async def test_a_refused_message_is_not_kept_by_its_refusal() -> None:
    """The traceback of a refusal holds the message, and lives until the garbage is collected."""
    arrivals = Arrivals(ConnectionWatch(), HalfSentMessages(), 4 << 20, lambda _: None)
    arrivals.memory = MessageMemory(8 * STEP_BYTES)
    seen: list[Any] = []

    async def answer(request: Any, context: Any) -> Any:
        seen.append(request)
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(answer, rpb.BatchRouteRequest.FromString)
    wrapped = arrivals.wrap(handler, "/modelsat.v1.RouterService/BatchRoute")

    async def sent(message: Message) -> AsyncIterator[bytes]:
        yield message.SerializeToString()

    small, flood = rpb.BatchRouteRequest(requests=[FLOOD]), rpb.BatchRouteRequest()
    flood.requests.extend([FLOOD] * 12)
    await wrapped.stream_unary(sent(small), _Context())
    await wrapped.stream_unary(sent(flood), _Context())
    assert seen[0] == small
    assert isinstance(seen[1], RefusedRequest)
    assert isinstance(seen[1].error, TooManyCallsError)
    assert seen[1].error.__traceback__ is None
    assert (arrivals.memory.used, arrivals.refusals()["memory"]) == (0, 1)


async def test_a_large_request_of_a_stream_is_in_progress_alone() -> None:
    running, together = set[int](), dict[int, int]()

    async def requests() -> AsyncIterator[int]:
        for i in range(12):
            yield i

    async def answer(i: int) -> int:
        running.add(i)
        for _ in range(20):
            await asyncio.sleep(0)
            together[i] = max(together.get(i, 0), len(running))
        running.discard(i)
        return i

    def weight(i: int) -> int:
        return 4 if i == 5 else 1

    async with aclosing(map_unordered(requests(), answer, 4, weight)) as answers:
        assert sorted([each async for each in answers]) == list(range(12))
    assert together[5] == 1
    assert max(together.values()) == 4


async def test_callers_take_turns_to_have_long_texts_read() -> None:
    order: list[str] = []

    class Router:
        token_counter = None

        async def route(self, *_: Any, **__: Any) -> None:
            order.append(PRINCIPAL.get())
            raise LookupError

    async def ask(principal: str) -> None:
        PRINCIPAL.set(principal)
        request = rpb.RouteRequest(text="<" * 4 * INLINE_READ_BYTES)
        router: Any = Router()
        with pytest.raises(LookupError):
            await route(router, request, 1 << 20, float("inf"))

    await asyncio.gather(*(ask("crowd") for _ in range(20)), ask("other"))
    assert order.index("other") <= 2
