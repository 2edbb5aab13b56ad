"""Both clients over real sockets: retries, deadlines, hedging, errors, and a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from engine.api.errors import OverloadedError, StoreError, Violation
from engine.api.limits import MAX_BATCH_REQUESTS
from engine.client.requests import MAX_BATCH_BYTES, batches
from engine.pb import candidate_service_pb2_grpc, router_service_pb2_grpc
from engine.pb.router_service_pb2 import RouteResponse
from engine.serving.components import ROUTER, max_message_bytes
from engine.serving.rpc.interceptors import StatusInterceptor
from engine.serving.rpc.listener import Service
from engine.serving.settings import Settings
from modelsat import (
    AsyncClient,
    Client,
    Credentials,
    InvalidInputError,
    ModelsatClientError,
    ModelsatError,
    Policy,
    RouteDecision,
    Turn,
)
from tests.serving.test_server import CATALOG, NEW, QUESTION
from tests.support.optional_tools import NODE_EXAMPLE, NODE_PACKAGES, missing, needs
from tools.processes import Server

LONG = 30.0  # seconds; nothing here takes as long
FULL = OverloadedError(9, 9, retry_after_s=0.01)


class Replica(
    router_service_pb2_grpc.RouterServiceServicer,
    candidate_service_pb2_grpc.CandidateServiceServicer,
):
    """Raises `errors` one after the other, then answers with its name, or never if it stalls."""

    def __init__(self, name: str = "a", *errors: ModelsatError, stalls: bool = False) -> None:
        self.name, self.errors, self.stalls = name, list(errors), stalls
        self.requests, self.cancelled, self.port = 0, 0, 0

    async def Route(self, request: Any, context: Any) -> RouteResponse:  # noqa: N802
        self.requests += 1
        if self.errors:
            raise self.errors.pop(0)
        try:
            await asyncio.sleep(LONG if self.stalls else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return RouteResponse(selected=f"candidates/{self.name}")

    async def CreateCandidate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self.Route(request, context)


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[str]:
    """Serve them with the project's own status interceptor; yields the target of a client."""
    async with AsyncExitStack() as stack:
        for replica in replicas:
            server = grpc.aio.server(interceptors=[StatusInterceptor()])
            router_service_pb2_grpc.add_RouterServiceServicer_to_server(replica, server)
            candidate_service_pb2_grpc.add_CandidateServiceServicer_to_server(replica, server)
            replica.port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
        yield "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)


async def route_async(target: str, **settings: Any) -> str:
    """Route with AsyncClient and return who answered."""
    async with AsyncClient(target, **settings) as client:
        return (await client.route("Hi")).selected


async def route_sync(target: str, **settings: Any) -> str:
    """Route with Client and return who answered."""

    def call() -> str:
        with Client(target, **settings) as client:
            return client.route("Hi").selected

    return await asyncio.to_thread(call)


both = pytest.mark.parametrize("route", [route_sync, route_async])


@both
async def test_refused_call_is_retried(route: Any) -> None:
    replica = Replica("a", FULL, FULL)
    async with running(replica) as target:
        assert await route(target, timeout_s=LONG) == "a"
    assert replica.requests == 3


@both
async def test_retries_can_be_switched_off(route: Any) -> None:
    replica = Replica("a", FULL)
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError, match="queue is full") as refused:
            await route(target, timeout_s=LONG, retries=False)
    assert (refused.value.code, refused.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert refused.value.retry_after_s == pytest.approx(0.01)
    assert replica.requests == 1


@both
async def test_retry_waits_as_long_as_the_server_says(route: Any) -> None:
    replica = Replica("a", OverloadedError(9, 9, retry_after_s=60))
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError) as late:
            await route(target, timeout_s=1)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert replica.requests == 1


@both
async def test_invalid_request_is_not_retried(route: Any) -> None:
    replica = Replica("a", InvalidInputError(Violation("text", "is wrong.")))
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError, match="is wrong"):
            await route(target, timeout_s=LONG)
    assert replica.requests == 1


async def test_change_of_candidates_is_not_retried() -> None:
    replica = Replica("a", StoreError("The disk is full."))
    async with running(replica) as target, AsyncClient(target, LONG) as client:
        with pytest.raises(ModelsatClientError, match="disk is full"):
            await client.create_candidate(NEW)
    assert replica.requests == 1


@both
async def test_stalled_server_is_abandoned_at_the_deadline(route: Any) -> None:
    replica = Replica("a", stalls=True)
    async with running(replica) as target:
        with pytest.raises(ModelsatClientError) as late:
            await route(target, timeout_s=0.3)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert replica.requests == 1


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_hedge_wins_against_a_stalled_server_and_cancels_it(kind: Any) -> None:
    stalled, healthy = Replica("stalled", stalls=True), Replica("healthy")
    async with running(stalled) as first, running(healthy) as second:
        client = kind(first, LONG, hedge_address=second, hedge_after_s=0.05)
        if kind is Client:
            answered = (await asyncio.to_thread(client.route, "Hi")).selected
        else:
            answered = (await client.route("Hi")).selected
        assert answered == "healthy"
        assert stalled.requests == 1
        while not stalled.cancelled:  # before the client closes, which cancels as well
            await asyncio.sleep(0.01)
        await client.close() if kind is AsyncClient else client.close()


@both
async def test_fast_answer_is_not_hedged(route: Any) -> None:
    first, second = Replica("first"), Replica("second")
    async with running(first) as target, running(second) as hedge:
        answered = await route(target, hedge_address=hedge, hedge_after_s=LONG)
    assert answered == "first"
    assert second.requests == 0


@both
async def test_failed_hedge_leaves_the_first_call_its_time(route: Any) -> None:
    slow = Replica("slow", stalls=True)
    async with running(slow) as target:
        with pytest.raises(ModelsatClientError) as late:
            await route(target, timeout_s=0.5, hedge_address="127.0.0.1:1", hedge_after_s=0.05)
    assert late.value.code == "DEADLINE_EXCEEDED"


async def test_async_client_calls_every_method_of_a_real_server(shared_server: Server) -> None:
    async with AsyncClient(shared_server.address, LONG) as client:
        assert (await client.server_info()).candidates == len(CATALOG)
        ids = [c.id for c in await client.list_candidates()]
        assert ids == sorted(c.id for c in CATALOG)
        turns = [Turn("system", "Be brief."), Turn("user", QUESTION)]
        with_system, alone = await client.route(turns), await client.route(QUESTION)
        assert with_system.selected == alone.selected
        assert with_system.input_tokens > alone.input_tokens
        selected = with_system.selected
        assert (await client.get_candidate(selected)).id == selected
        (other,) = await client.route_many([QUESTION], Policy(denied_candidates=(selected,)))
        assert isinstance(other, RouteDecision)
        assert other.selected not in ("", selected)
        assert set(other.excluded) == {selected}
        decision_id = with_system.decision_id
        assert await client.record_outcome(decision_id, selected, 1.0)
        assert not await client.record_outcome(decision_id, selected, 1.0)
        first = await anext(client.watch_candidates())
        assert {c.id for c in first.changed} == {c.id for c in CATALOG}
        assert first.revision == with_system.revision
        with pytest.raises(ModelsatClientError, match="no-such-candidate"):
            await client.route(QUESTION, Policy(allowed_candidates=("no-such-candidate",)))


async def test_async_client_changes_candidates_and_rolls_back(shared_server: Server) -> None:
    async with AsyncClient(shared_server.address, LONG) as client:
        before = await client.list_candidates()
        revision = (await client.server_info()).revision
        assert (await client.create_candidate(NEW)).id == NEW.id
        tagged = dataclasses.replace(NEW, tags=("production",), display_name="Not sent")
        changed = await client.update_candidate(tagged, ["tags"], etag=NEW.etag)
        assert changed == dataclasses.replace(NEW, tags=("production",))
        for change in (
            client.update_candidate(NEW, etag=NEW.etag),
            client.delete_candidate(NEW.id, etag=NEW.etag),
        ):
            with pytest.raises(ModelsatClientError) as stale:
                await change
            assert stale.value.reason == "ETAG_MISMATCH"
        await client.delete_candidate(NEW.id)
        await client.delete_candidate(NEW.id, allow_missing=True)
        assert await client.replace_candidates(before[1:]) > revision
        assert (await client.rollback(revision)).candidates == len(before)
        assert (await client.list_revisions())[0].description == f"rolled back to {revision}"
        assert await client.list_candidates() == before


async def test_stream_yields_every_result_and_then_the_error_of_the_input(
    shared_server: Server,
) -> None:
    def instructions() -> Iterator[str]:
        yield QUESTION
        yield "x" * 2_000_000  # more than the server reads
        yield " "  # cannot be sent

    def check(results: dict[int, Any]) -> None:
        assert set(results) == {0, 1}
        assert isinstance(results[0], RouteDecision)
        assert isinstance(results[1], ModelsatClientError)
        assert results[1].code == "INVALID_ARGUMENT"

    results: dict[int, Any] = {}
    async with AsyncClient(shared_server.address, LONG) as client:

        async def read() -> None:
            async for position, result in client.route_stream(instructions()):
                results[position] = result

        with pytest.raises(InvalidInputError, match="empty"):
            await read()
    check(results)
    results.clear()
    with Client(shared_server.address, LONG) as sync_client:
        with pytest.raises(InvalidInputError, match="empty"):
            results.update(sync_client.route_stream(instructions()))
        # Reading on is optional: closing the iterator cancels the call.
        next(iter(sync_client.route_stream([QUESTION] * 1000)))


BAD_CALLS: list[Callable[[Any], Any]] = [
    lambda c: c.route([]),
    lambda c: c.route(" "),
    lambda c: c.route("\udcff"),
    lambda c: c.route([Turn("user", "\udcff")]),
    lambda c: c.route([Turn("narrator", "Hi")]),  # type: ignore[arg-type]
    lambda c: c.route("Hi", Policy(ranking_size=2**40)),
    lambda c: c.route("Hi", Policy(allowed_candidates=("\udcff",))),
    lambda c: c.route_many(["Hi", ""]),
    lambda c: c.record_outcome("x", "y", 1.0, text="\udcff"),
    lambda c: c.get_candidate("no such/ID"),
    lambda c: c.update_candidate(NEW, ["\udcff"]),
    lambda c: c.delete_candidate("a", etag="\udcff"),
    lambda c: c.rollback(2**80),
]


@pytest.mark.parametrize("call", BAD_CALLS)
async def test_value_that_cannot_be_sent_is_invalid_input(call: Callable[[Any], Any]) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidInputError):
        call(client)
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidInputError):
            await call(client)


@pytest.mark.parametrize("token", ["a\nb", "a b", "é", "a\x00"])
def test_token_that_is_not_one_word_is_invalid_input(token: str) -> None:
    with pytest.raises(InvalidInputError, match="token"):
        Credentials(token=token)


def test_certificate_without_key_or_file_is_invalid_input() -> None:
    with pytest.raises(InvalidInputError, match="belong together"):
        Client(credentials=Credentials(tls_cert="client.pem"))
    with pytest.raises(InvalidInputError, match=r"tls_ca: is none\.pem, which cannot be read"):
        Client(credentials=Credentials(tls_ca="none.pem"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:1", "a b:1", "\0:1"])
async def test_failed_and_closed_calls_raise_client_errors(address: str) -> None:
    client = Client(address, 0.5, retries=False)
    with pytest.raises(ModelsatClientError):
        client.route("Hi")
    client.close()
    for call in (client.route, client.watch_candidates().__next__, client.list_candidates):
        with pytest.raises(ModelsatClientError, match="closed"):
            call(*["Hi"] if call == client.route else [])
    async_client = AsyncClient(address, 0.5, retries=False)
    with pytest.raises(ModelsatClientError):
        await async_client.route("Hi")
    await async_client.close()
    with pytest.raises(ModelsatClientError, match="closed"):
        await async_client.route("Hi")
    with pytest.raises(ModelsatClientError, match="closed"):
        await anext(async_client.watch_candidates())


def test_batches_stay_within_what_a_server_accepts() -> None:
    large, small = ["x" * 110_000] * 40, ["y"] * (MAX_BATCH_REQUESTS + 1)
    huge = ["z" * MAX_BATCH_BYTES]
    texts = [*large, *huge, *small]
    split = list(batches(texts, Policy(), False))
    assert [r.text for batch in split for r in batch.requests] == texts
    assert [len(batch.requests) for batch in split] == [19, 19, 2, 1, MAX_BATCH_REQUESTS, 1]
    assert sum(batch.ByteSize() > MAX_BATCH_BYTES for batch in split) == 1
    apart = max_message_bytes(Settings(), [Service(ROUTER, lambda server: None)])
    assert max(batch.ByteSize() for batch in split) <= apart  # with an address of its own
    assert not list(batches([], Policy(), False))


@needs(missing(NODE_PACKAGES))
def test_node_example_routes(shared_server: Server) -> None:
    def run(address: str) -> subprocess.CompletedProcess[str]:
        command = ["node", "route.mjs", QUESTION, address]
        return subprocess.run(command, cwd=NODE_EXAMPLE, capture_output=True, text=True, timeout=60)

    done = run(shared_server.address)
    assert done.returncode == 0, done.stderr
    with Client(shared_server.address, LONG) as client:
        policy = Policy("willingness_to_pay_usd", 0.1, ranking_size=3)
        ranking = client.route(QUESTION, policy).ranking
    names = [line.split()[1] for line in done.stdout.splitlines()[:3]]
    assert names == [ranked.candidate for ranked in ranking]
    unreachable = run("127.0.0.1:1")
    assert unreachable.returncode == 1
    assert unreachable.stderr.startswith("error: UNAVAILABLE")
