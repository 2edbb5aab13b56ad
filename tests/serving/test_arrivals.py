"""Kind: limits of the layer below left at their defaults. Many calls, many connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from engine.api.errors import TooManyCallsError
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import candidate_service_pb2_grpc as cgrpc
from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc as rgrpc
from engine.serving.auth.interceptor import AccessInterceptor
from engine.serving.auth.tokens import TokenFile, new_token
from engine.serving.rpc.arrivals import Arrivals, arrival_samples
from engine.serving.rpc.connections import ConnectionWatch, connection_limit, connections_of
from engine.serving.rpc.fair_slots import FairSlots
from engine.serving.rpc.half_sent import HalfSentMessages
from tools.processes import Server

CONNECTIONS, CALLS = 3, 600  # more at once than gRPC keeps by default
Call = Callable[[grpc.aio.Channel, int], Any]


def read_one(call: Any) -> Any:
    return call.read()


CALLS_OF: dict[str, tuple[Call, Callable[[Any], Any]]] = {
    "Route": (
        lambda channel, n: rgrpc.RouterServiceStub(channel).Route(
            rpb.RouteRequest(text=f"question {n % 50}"), timeout=60
        ),
        lambda call: call,
    ),
    "BatchRoute": (
        lambda channel, n: rgrpc.RouterServiceStub(channel).BatchRoute(
            rpb.BatchRouteRequest(requests=[rpb.RouteRequest(text=f"question {n % 50}")]),
            timeout=60,
        ),
        lambda call: call,
    ),
    "GetServerInfo": (
        lambda channel, n: rgrpc.RouterServiceStub(channel).GetServerInfo(
            rpb.GetServerInfoRequest(), timeout=60
        ),
        lambda call: call,
    ),
    "health Watch": (
        lambda channel, n: health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=60
        ),
        read_one,
    ),
    "WatchCandidates": (
        lambda channel, n: cgrpc.CandidateServiceStub(channel).WatchCandidates(
            cpb.WatchCandidatesRequest(), timeout=60
        ),
        read_one,
    ),
}


def outcome(result: Any) -> str:
    """OK, or the code of a refusal; one without RetryInfo is named apart."""
    if not isinstance(result, grpc.aio.AioRpcError):
        return "OK" if not isinstance(result, BaseException) else type(result).__name__
    status = rpc_status.from_call(result)
    retry = error_details_pb2.RetryInfo()
    has_retry = status is not None and any(detail.Unpack(retry) for detail in status.details)
    return result.code().name + ("" if has_retry else " without RetryInfo")


@pytest.mark.parametrize("name", CALLS_OF)
async def test_every_call_at_once_is_answered_or_refused_with_a_retry_time(
    shared_server: Server, name: str
) -> None:
    begin, wait = CALLS_OF[name]
    channels = [
        grpc.aio.insecure_channel(shared_server.address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    each = CALLS if name != "WatchCandidates" else 100  # each answer is the whole table
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    calls = [begin(channel, n) for channel in channels for n in range(each)]
    results = await asyncio.gather(*map(wait, calls), return_exceptions=True)
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()
    seen = Counter(map(outcome, results))
    assert set(seen) <= {"OK", "RESOURCE_EXHAUSTED"}, seen
    assert seen["OK"] > 0


def test_connections_without_calls_make_room_and_those_with_calls_stay() -> None:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        peers = []
        for _ in range(20):
            ours = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.enter_context(listener.accept()[0])
            peers.append((ours, "ipv4:{}:{}".format(*ours.getsockname())))
        assert len(connections_of([port])[port]) == 20
        watch = ConnectionWatch()
        watch.add_port(port, limit=10)  # 6 are kept
        busy, used_before = peers[5], peers[9]
        with watch.calling(busy[1]):
            with watch.calling(used_before[1]):
                pass
            assert watch.sweep() == 14
            ours_closed = [peer for peer in peers if closed(peer[0])]
            assert len(ours_closed) == 14
            assert busy not in ours_closed
            assert used_before not in ours_closed
            assert watch.closed == 14


@pytest.mark.parametrize(
    ("callers", "left"),
    [
        ({"a": 14, "b": 4}, {"a": 5, "b": 4}),  # a is left half of the 10 that are kept
        ({"a": 12, "": 6}, {"a": 5, "": 6}),
        ({"": 18}, {"": 18}),  # callers without a name may be one or many
        ({"a": 4, "b": 4}, {"a": 4, "b": 4}),
    ],
)
def test_calls_that_never_end_keep_no_other_caller_out(
    callers: dict[str, int], left: dict[str, int]
) -> None:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        watch = ConnectionWatch()
        watch.add_port(port, limit=17)  # 10 are kept
        ours: list[tuple[str, socket.socket]] = []
        for caller in (name for name, count in callers.items() for _ in range(count)):
            peer = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            opened.enter_context(listener.accept()[0])
            name = "ipv4:{}:{}".format(*peer.getsockname())
            opened.enter_context(watch.calling(name, caller))
            ours.append((caller, peer))
        watch.sweep()
        assert Counter(caller for caller, peer in ours if not closed(peer)) == left


def closed(peer: socket.socket) -> bool:
    peer.settimeout(0.05)
    try:
        return peer.recv(1) == b""
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    ("configured", "descriptors", "addresses", "limit"),
    [
        (0, 1024, 1, 768),
        (0, 1024, 3, 256),
        (0, 65_536, 1, 4096),
        (100, 65_536, 2, 100),
        (0, 64, 2, 16),
    ],
)
def test_descriptors_are_left_for_files(
    configured: int, descriptors: int, addresses: int, limit: int
) -> None:
    assert connection_limit(configured, descriptors, addresses) == limit


@pytest.mark.parametrize(
    "path",
    [
        "/modelsat.v1.RouterService/Route",
        "/modelsat.v1.CandidateService/CreateCandidate",
        "/modelsat.v1.CandidateService/WatchCandidates",
        "/grpc.health.v1.Health/Check",
    ],
)
async def test_requests_that_never_arrive_keep_no_caller_out(
    shared_server: Server, path: str
) -> None:
    """Kind: time limits for half-sent messages. Here not even the first byte is sent."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(shared_server.address, options) as theirs,
        grpc.aio.insecure_channel(shared_server.address, options) as ours,
    ):
        halves = [theirs.stream_unary(path)() for _ in range(12)]
        await asyncio.gather(*(half.wait_for_connection() for half in halves))
        route = rgrpc.RouterServiceStub(ours).Route
        for n in range(5):
            assert (await route(rpb.RouteRequest(text=f"question {n}"), timeout=30)).selected
        done, _ = await asyncio.wait(
            [asyncio.ensure_future(half.code()) for half in halves],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for half in halves:
            half.cancel()


async def test_waiting_callers_take_turns_and_the_longest_line_is_refused_first() -> None:
    slots, order = FairSlots(1, 4, "calls"), list[str]()

    async def call(principal: str) -> None:
        async with slots.slot(principal):
            order.append(principal)
            await asyncio.sleep(0)

    async with slots.slot("holder"):
        heavy = [asyncio.create_task(call("heavy")) for _ in range(4)]
        await asyncio.sleep(0)
        light = asyncio.create_task(call("light"))
        await asyncio.sleep(0)
        assert slots.waiting == 4
    results = await asyncio.gather(*heavy, light, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 3 + [
        TooManyCallsError,
        type(None),
    ]
    assert order == ["heavy", "light", "heavy", "heavy"]
    assert slots.refused == 1


def test_refusals_of_all_addresses_are_exported_and_those_of_a_shared_lane_once() -> None:
    watch, half_sent = ConnectionWatch(), HalfSentMessages()
    routes = FairSlots(1, 1, "calls of Route")
    both = [Arrivals(watch, half_sent, 1 << 20, lambda _: None, routes) for _ in range(2)]
    for arrivals in both:
        arrivals.receiving.refusal()
        arrivals.slow += 1
    routes.refusal()
    half_sent.ended, watch.closed = 3, 4
    samples = {name: read() for name, read in arrival_samples(both, half_sent, watch).items()}
    places = samples["modelsat_arrivals_refused_total"]
    counts = {"receiving": 2, "slow_message": 2, "routes": 1, "half_sent": 3, "reads": 0}
    assert {place: places[(place,)] for place in counts} == counts
    assert samples["modelsat_connections_closed_total"] == {(): 4}


async def test_callers_without_a_token_take_no_place_of_those_with_one(tmp_path: Path) -> None:
    """Kind: what is open to all starves the rest. Half-sent probes and refused streams."""
    text, entry = new_token("route", "gateway-1")
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"tokens": [vars(entry)]}))
    access = AccessInterceptor(TokenFile(file), client_certificates=False)
    arrivals = Arrivals(ConnectionWatch(), HalfSentMessages(), 1 << 20, access.note_caller)
    arrivals.streams.limit = 1
    server = grpc.aio.server(interceptors=[arrivals, access])

    async def route(request: rpb.RouteRequest, _: Any) -> rpb.RouteResponse:
        return rpb.RouteResponse(selected=request.text)

    async def stream(requests: Any, _: Any) -> Any:
        async for request in requests:
            yield request

    handlers = {
        "Route": grpc.unary_unary_rpc_method_handler(
            route, rpb.RouteRequest.FromString, rpb.RouteResponse.SerializeToString
        ),
        "StreamRoute": grpc.stream_stream_rpc_method_handler(stream, bytes, bytes),
    }
    service = grpc.method_handlers_generic_handler("modelsat.v1.RouterService", handlers)
    server.add_generic_rpc_handlers((service,))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    metadata = (("authorization", f"Bearer {text}"),)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as theirs,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as ours,
    ):
        halves = [theirs.stream_unary("/grpc.health.v1.Health/Check")() for _ in range(200)]
        await asyncio.gather(*(half.wait_for_connection() for half in halves))
        while arrivals.probes.waiting < 100:
            await asyncio.sleep(0.01)
        stub = rgrpc.RouterServiceStub(ours)
        answer = await stub.Route(rpb.RouteRequest(text="x"), metadata=metadata, timeout=30)
        assert answer.selected == "x"
        assert arrivals.probes.waiting >= 100  # none of them had to give way
        path = "/modelsat.v1.RouterService/StreamRoute"
        refused = [theirs.stream_stream(path)() for _ in range(20)]
        assert {await call.code() for call in refused} == {grpc.StatusCode.UNAUTHENTICATED}
        assert arrivals.streams.refused == 0
        for half in halves:
            half.cancel()
    await server.stop(0)
