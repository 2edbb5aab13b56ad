"""The end of a server: what is in flight ends, streams are closed, the next call hears it."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc
from engine.serving.rpc.drain import Drain
from modelsat import Client
from tests.conftest import INSTRUCTIONS
from tests.serving.test_server import status_of
from tools.processes import await_ready, launch

pytestmark = pytest.mark.slow

LONG = 30.0  # seconds that nothing here takes
Raw = Callable[..., Any]


def test_sigterm_fails_no_request_in_flight(tmp_path: Path) -> None:
    """Sixteen callers have a request in flight at every moment, so also when the server closes.
    Each is answered; only the request after the last answer is refused, and says when to retry."""
    server = await_ready(launch(tmp_path / "s.sqlite", "--score-cache-mb", "0"))
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(16) as pool:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        seen = health.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=LONG)
        assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
        answered = threading.Semaphore(0)

        def until_refused(first: int) -> tuple[str, str, dict[str, Any]]:
            for i in itertools.count(first):
                try:
                    text = INSTRUCTIONS[i % len(INSTRUCTIONS)]
                    stub.Route(rpb.RouteRequest(text=text), timeout=LONG)
                except grpc.RpcError as error:
                    return status_of(error)
                answered.release()
            raise AssertionError

        callers = [pool.submit(until_refused, i) for i in range(16)]
        for _ in range(20):
            assert answered.acquire(timeout=LONG)
        server.process.send_signal(signal.SIGTERM)
        assert next(seen).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Health said so before anyone was refused: this one is still served.
        stub.Route(rpb.RouteRequest(text="one more"), timeout=LONG)
        assert list(seen) == []
        refusals = [caller.result() for caller in callers]
    assert server.process.wait(LONG) == 0
    assert {code for code, _, _ in refusals} == {"UNAVAILABLE"}
    assert any("RetryInfo" in details for _, _, details in refusals)
    # Who came after the last answer found no port; no call was cut off.
    assert not [m for _, m, d in refusals if "RetryInfo" not in d and "connect" not in m.lower()]
    assert "Traceback" not in server.printed()


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    server = await_ready(launch(tmp_path / "s.sqlite", "--shutdown-grace-period-s", "3600"))
    with Client(server.address) as client:
        client.server_info()
        server.process.send_signal(signal.SIGTERM)
        while "stopping" not in server.printed():
            threading.Event().wait(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LONG) == -signal.SIGTERM


class Service:
    """Every kind of method, as a generator and as a coroutine that writes."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.ended: list[str] = []

    async def slow(self, request: bytes, _: Any) -> bytes:
        await self.release.wait()
        return request

    async def watch(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        try:
            yield request
            await asyncio.sleep(3600)
        finally:
            self.ended.append("watch")

    async def watch_writing(self, request: bytes, context: Any) -> None:
        try:
            await context.write(request)
            await asyncio.sleep(3600)
        finally:
            self.ended.append("watch_writing")

    async def echo(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        """Answers late, as a router does: the last answer comes after the last request."""
        tasks = []
        async for request in requests:
            if request == b"later":
                tasks.append(asyncio.create_task(self.slow(request, None)))
            else:
                yield request
        for task in tasks:
            yield await task

    async def echo_writing(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for request in requests:
            await context.write(request)

    async def count(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        return b"%d" % len([request async for request in requests])

    def handlers(self) -> dict[str, Any]:
        return {
            "count": grpc.stream_unary_rpc_method_handler(self.count),
            "slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "watch_writing": grpc.unary_stream_rpc_method_handler(self.watch_writing),
            "echo": grpc.stream_stream_rpc_method_handler(self.echo),
            "echo_writing": grpc.stream_stream_rpc_method_handler(self.echo_writing),
        }


@contextmanager
def called(drain: Drain, service: Service) -> Iterator[tuple[grpc.aio.Server, str]]:
    server = grpc.aio.server(interceptors=[drain])
    handler = grpc.method_handlers_generic_handler("test.Service", service.handlers())
    server.add_generic_rpc_handlers((handler,))
    yield server, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"


async def test_streams_end_with_ok_and_calls_in_flight_are_waited_for() -> None:
    drain, service = Drain(), Service()
    with called(drain, service) as (server, address):
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            slow = channel.unary_unary("/test.Service/slow")(b"x")
            watches = [
                channel.unary_stream(f"/test.Service/{name}")(b"w")
                for name in ("watch", "watch_writing")
            ]
            echoes = [
                channel.stream_stream(f"/test.Service/{name}")()
                for name in ("echo", "echo_writing")
            ]
            counting = channel.stream_unary("/test.Service/count")()
            await counting.write(b"1")
            for watch in watches:
                assert await watch.read() == b"w"
            for echo in echoes:
                await echo.write(b"1")
                assert await echo.read() == b"1"
            await echoes[0].write(b"later")
            await echoes[0].write(b"2")
            assert await echoes[0].read() == b"2"

            closing = asyncio.create_task(drain.close(LONG))
            for stream in (*watches, echoes[1]):
                assert await stream.read() is grpc.aio.EOF
                assert await stream.code() == grpc.StatusCode.OK
            assert await counting == b"1"
            assert sorted(service.ended) == ["watch", "watch_writing"]
            await refused(channel.unary_unary("/test.Service/slow"))
            assert not closing.done()
            service.release.set()
            assert await slow == b"x"
            assert await echoes[0].read() == b"later"
            assert await echoes[0].read() is grpc.aio.EOF
            assert await echoes[0].code() == grpc.StatusCode.OK
            await closing
        await server.stop(0)


async def refused(method: Callable[[bytes], Awaitable[bytes]]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await method(b"new")
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    keys = {key for key, _ in error.value.trailing_metadata()}
    assert "grpc-status-details-bin" in keys


async def test_a_caller_that_leaves_is_counted_out() -> None:
    drain, service = Drain(), Service()
    with called(drain, service) as (server, address):
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            watches = [
                channel.unary_stream(f"/test.Service/{name}")(b"w")
                for name in ("watch", "watch_writing")
            ]
            for watch in watches:
                await watch.read()
                watch.cancel()
            slow = channel.unary_unary("/test.Service/slow")(b"x")
            await asyncio.sleep(0)
            slow.cancel()
            assert await drain.close(LONG), "a call is counted still"
            while len(service.ended) < len(watches):
                await asyncio.sleep(0.01)
        await server.stop(0)
