"""Both clients over real sockets: retries, deadlines, hedging, and what they ask a real server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from engine.api.errors import (
    InvalidInputError,
    ModelsatError,
    OverloadedError,
    StoreError,
    Violation,
)
from engine.client.aio import AsyncClient
from engine.client.requests import MAX_BATCH, MAX_BATCH_BYTES, batches
from engine.client.sync import Client, ModelsatClientError, Policy, Turn
from engine.pb import candidate_service_pb2_grpc, router_service_pb2_grpc
from engine.pb.router_service_pb2 import RouteResponse
from engine.serving.rpc.interceptors import StatusInterceptor
from tests.serving.test_server import NEW, QUESTION, ZOO
from tests.support.optional_tools import NODE_EXAMPLE, NODE_PACKAGES, missing, needs
from tools.processes import Server

LONG = 30.0  # seconds that nothing here takes
FULL = OverloadedError(9, 9, retry_after_s=0.01)


class Replica(
    router_service_pb2_grpc.RouterServiceServicer,
    candidate_service_pb2_grpc.CandidateServiceServicer,
):
    """Raises `errors` one after the other, then answers with its name, or never if it stalls."""

    def __init__(self, name: str = "a", *errors: ModelsatError, stalls: bool = False) -> None:
        self.name, self.errors, self.stalls = name, list(errors), stalls
        self.asked, self.cancelled, self.port = 0, 0, 0

    async def Route(self, request: Any, context: Any) -> RouteResponse:  # noqa: N802
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        try:
            await asyncio.sleep(LONG if self.stalls else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return RouteResponse(selected=self.name)

    async def CreateCandidate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self.Route(request, context)


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[str]:
    """The target of a client; statuses are made by the project's own interceptor."""
    async with AsyncExitStack() as stack:
        for replica in replicas:
            server = grpc.aio.server(interceptors=[StatusInterceptor()])
            router_service_pb2_grpc.add_RouterServiceServicer_to_server(replica, server)
            candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(replica, server)
            replica.port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
        yield "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)


async def asynchronous(target: str, **settings: Any) -> str:
    """Who answered."""
    async with AsyncClient(target, **settings) as client:
        return (await client.route("Hi")).selected


async def synchronous(target: str, **settings: Any) -> str:
    """Who answered."""

    def call() -> str:
        with Client(target, **settings) as client:
            return client.route("Hi").selected

    return await asyncio.to_thread(call)


both = pytest.mark.parametrize("ask", [synchronous, asynchronous])


@both
async def test_a_refused_call_is_sent_again(ask: Any) -> None:
    replica = Replica("a", FULL, FULL)
    async with running(replica) as target:
        assert await ask(target, timeout_s=LONG) == "a"
    assert replica.asked == 3


@both
async def test_retries_can_be_switched_off(ask: Any) -> None:
    replica = Replica("a", FULL)
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError, match="queue is full") as refused:
            await ask(target, timeout_s=LONG, retries=False)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert replica.asked == 1


@both
async def test_a_call_is_not_sent_again_before_the_server_said(ask: Any) -> None:
    replica = Replica("a", OverloadedError(9, 9, retry_after_s=60))
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError) as late:
            await ask(target, timeout_s=1)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert replica.asked == 1


@both
async def test_what_a_retry_cannot_mend_is_sent_once(ask: Any) -> None:
    replica = Replica("a", InvalidInputError(Violation("text", "is wrong.")))
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError, match="is wrong"):
            await ask(target, timeout_s=LONG)
    assert replica.asked == 1


async def test_a_change_that_may_have_been_made_is_sent_once() -> None:
    replica = Replica("a", StoreError("The disk is full."))
    async with running(replica) as target, AsyncClient(target, LONG) as client:
        with pytest.raises(ModelsatClientError, match="disk is full"):
            await client.add(NEW)
    assert replica.asked == 1


@both
async def test_a_stalled_server_is_given_up_at_the_deadline(ask: Any) -> None:
    replica = Replica("a", stalls=True)
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError) as late:
            await ask(target, timeout_s=0.3)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert replica.asked == 1


async def test_a_hedge_wins_against_a_stalled_server() -> None:
    stalled, well = Replica("stalled", stalls=True), Replica("well")
    async with running(stalled) as first, running(well) as second:
        settings = {"hedge_address": second, "hedge_after_s": 0.05}
        async with AsyncClient(first, LONG, **settings) as client:
            assert (await client.route("Hi")).selected == "well"
            assert stalled.asked == 1
            while not stalled.cancelled:
                await asyncio.sleep(0.01)


async def test_a_server_that_answers_is_not_hedged() -> None:
    first, second = Replica("first"), Replica("second")
    async with running(first) as at, running(second) as beside:
        answered = await asynchronous(at, hedge_address=beside, hedge_after_s=LONG)
    assert answered == "first"
    assert second.asked == 0


async def test_a_hedge_that_fails_leaves_the_first_call_its_time() -> None:
    slow = Replica("slow", stalls=True)
    async with running(slow) as target:
        with pytest.raises(ModelsatClientError) as late:
            await asynchronous(
                target, timeout_s=0.5, hedge_address="127.0.0.1:1", hedge_after_s=0.05
            )
    assert late.value.code == "DEADLINE_EXCEEDED"


async def test_the_asyncio_client_speaks_with_a_real_server(shared_server: Server) -> None:
    async with AsyncClient(shared_server.address, LONG) as client:
        assert (await client.server_info()).candidates == len(ZOO)
        ids = [c.id for c in await client.candidates()]
        assert ids == sorted(c.id for c in ZOO)
        turns = [Turn("system", "Be brief."), Turn("user", QUESTION)]
        said, alone = await client.route(turns), await client.route(QUESTION)
        assert said.selected == alone.selected
        assert said.input_tokens > alone.input_tokens
        chosen = said.selected.removeprefix("candidates/")
        assert (await client.candidate(chosen)).id == chosen
        (other,) = await client.route_many([QUESTION], Policy(denied_candidates=(chosen,)))
        assert other.response.selected not in ("", said.selected)
        assert await client.record_outcome(said.decision_id, chosen, 1.0)
        assert not await client.record_outcome(said.decision_id, chosen, 1.0)
        first = await anext(client.watch())
        assert {c.name for c in first.changed} == {c.name for c in ZOO}
        assert first.revision == said.revision
        with pytest.raises(ModelsatClientError, match="nobody"):
            await client.route(QUESTION, Policy(allowed_candidates=("nobody",)))
        with pytest.raises(InvalidInputError, match="no turn"):
            await client.route([])


async def test_the_asyncio_client_changes_the_candidates(shared_server: Server) -> None:
    async with AsyncClient(shared_server.address, LONG) as client:
        before = await client.candidates()
        assert (await client.add(NEW)).id == NEW.id
        await client.remove(NEW.id)
        assert await client.replace(before) > 0
        assert await client.candidates() == before


def test_batches_stay_within_what_a_server_receives() -> None:
    large, small = ["x" * 110_000] * 240, ["y"] * (MAX_BATCH + 1)
    huge = ["z" * MAX_BATCH_BYTES]
    texts = [*large, *huge, *small]
    found = list(batches(texts, Policy(), False))
    assert [r.text for batch in found for r in batch.requests] == texts
    assert [len(batch.requests) for batch in found] == [95, 95, 50, 1, MAX_BATCH, 1]
    assert sum(batch.ByteSize() > MAX_BATCH_BYTES for batch in found) == 1
    assert not list(batches([], Policy(), False))


@needs(missing(NODE_PACKAGES))
def test_the_example_in_node_routes(shared_server: Server) -> None:
    def run(address: str) -> subprocess.CompletedProcess[str]:
        command = ["node", "route.mjs", QUESTION, address]
        return subprocess.run(command, cwd=NODE_EXAMPLE, capture_output=True, text=True, timeout=60)

    done = run(shared_server.address)
    assert done.returncode == 0, done.stderr
    with Client(shared_server.address, LONG) as client:
        policy = Policy(value=0.2, ranking_size=3)
        ranking = client.route(QUESTION, policy).ranking
    names = [line.split()[1] for line in done.stdout.splitlines()[:3]]
    assert names == [ranked.candidate.removeprefix("candidates/") for ranked in ranking]
    nobody = run("127.0.0.1:1")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("error: UNAVAILABLE")
