"""Kind: limits of the layer below left at defaults. Messages of streams that are sent in part."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc as rgrpc
from engine.serving.rpc.arrivals import MAX_REQUEST_STREAMS
from engine.serving.rpc.half_sent import CALL_BYTES, HalfSentMessages
from tools.processes import Server, serving

MIB = 1024 * 1024
DATA, HEADERS, RESET, SETTINGS, WINDOW_UPDATE = 0, 1, 3, 4, 8  # HTTP/2 frames
INITIAL_WINDOW_SIZE = 4
EXTPROC = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return (
        struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body
    )


class HalfSender:
    """An HTTP/2 client that sends `count` messages of `size` bytes but for the last bytes."""

    def __init__(self, port: int, path: str, count: int, size: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._windows, self._initial = {0: 65_535}, 65_535
        self.left = {2 * n + 1: size for n in range(count)}
        self.reset: set[int] = set()
        pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        pairs |= {"content-type": "application/grpc"}
        headers = b"".join(
            b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode()
            for k, v in pairs.items()
        )
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
        for stream in self.left:
            # A field of unknown number that takes the rest of the message.
            head = b"\0" + struct.pack(">I", size + 100) + b"\xfa\x06"
            self._send(frame(HEADERS, 4, stream, headers) + frame(DATA, 0, stream, head))
            self._windows[stream] = self._initial - len(head)
            self._windows[0] -= len(head)

    def run(self) -> None:
        """Send all that the server's windows allow, until it has reset every stream or takes no
        more."""
        received = b""
        while any(self.left.values()):
            received = self._read(received, 0.0 if self._send_some() else 3.0)
            if not received and not any(w > 0 for s, w in self._windows.items() if s in self.left):
                return

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(30)
        self._socket.sendall(data)

    def _send_some(self) -> bool:
        sent = False
        for stream, left in list(self.left.items()):
            size = min(left, 16_384, self._windows[0], self._windows[stream])
            if size > 0:
                self._send(frame(DATA, 0, stream, bytes(size)))
                self._windows[0] -= size
                self._windows[stream] -= size
                self.left[stream] -= size
                sent = True
        return sent

    def _read(self, received: bytes, wait_s: float) -> bytes:
        self._socket.settimeout(wait_s or 0.0001)
        try:
            data = self._socket.recv(MIB)
        except (TimeoutError, BlockingIOError):
            if wait_s:
                self.left.clear()
            return received
        if not data:
            self.left.clear()
        received += data
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3]):
            size, kind, flags = int.from_bytes(received[:3]), received[3], received[4]
            stream, body = int.from_bytes(received[5:9]), received[9 : 9 + size]
            received = received[9 + size :]
            self._take(kind, flags, stream, body)
        return received

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(body)
        elif kind == RESET:
            self.left.pop(stream, None)
        elif kind == SETTINGS and not flags & 1:
            for at in range(0, len(body), 6):
                if int.from_bytes(body[at : at + 2]) == INITIAL_WINDOW_SIZE:
                    value = int.from_bytes(body[at + 2 : at + 6])
                    for each in self._windows:
                        self._windows[each] += (value - self._initial) if each else 0
                    self._initial = value
            self._send(frame(SETTINGS, 1, 0, b""))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("half_sent")
    with serving(folder / "c.sqlite", "--extproc-address", "127.0.0.1:0") as started:
        yield started


@contextmanager
def half_sender(port: int, path: str, count: int, size: int) -> Iterator[HalfSender]:
    sender = HalfSender(port, path, count, size)
    try:
        yield sender
    finally:
        sender.close()


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (EXTPROC, 10 * MIB),
        ("/modelsat.v1.RouterService/StreamRoute", 19 * MIB),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 10 * MIB),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", 10 * MIB),
        ("/modelsat.v1.RouterService/Route", 19 * MIB),
    ],
)
def test_sixty_messages_sent_in_part_take_little_memory(
    server: Server, method: str, size: int
) -> None:
    address = server.extproc_address if method == EXTPROC else server.address
    before = resident_mib(server.process.pid)
    with half_sender(int(address.rpartition(":")[2]), method, 60, size) as sender:
        sender.run()
        assert resident_mib(server.process.pid) - before < 100
        with grpc.insecure_channel(server.address) as channel:
            route = rgrpc.RouterServiceStub(channel).Route
            assert route(rpb.RouteRequest(text="What is 1 + 1?"), timeout=10).selected


async def open_streams(
    server: Server, count: int, stack: AsyncExitStack, more: int = 0
) -> list[grpc.aio.Call]:
    """StreamRoute calls on a connection of their own, each of which has been answered once.

    more: further calls that are made afterwards and must have ended.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(server.address, options)
    await stack.enter_async_context(channel)
    stream_route = rgrpc.RouterServiceStub(channel).StreamRoute
    calls = [stream_route(timeout=60) for _ in range(count)]
    for call in calls:
        await call.write(rpb.StreamRouteRequest(request=rpb.RouteRequest(text="What is 1 + 1?")))
        assert (await call.read()).result.response.selected
    late = [stream_route(timeout=60) for _ in range(more)]
    for call in late:
        await call.code()
    return [*calls, *late]


async def test_a_caller_with_all_streams_makes_room_for_another(server: Server) -> None:
    """Kind: no share per caller. The one who has most loses the stream that waits longest."""
    async with AsyncExitStack() as stack:
        heavy = await open_streams(server, MAX_REQUEST_STREAMS, stack)
        light = await open_streams(server, 2, stack)
        ended = {heavy[0], heavy[1]}
        for call in ended:
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not any(call.done() for call in {*heavy, *light} - ended)


async def test_a_caller_with_all_streams_gets_no_more(server: Server) -> None:
    async with AsyncExitStack() as stack:
        calls = await open_streams(server, MAX_REQUEST_STREAMS, stack, more=1)
        codes = Counter([await call.code() for call in calls if call.done()])
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 1}
        assert calls[-1].done()


async def test_health_watches_do_not_keep_other_callers_out(tmp_path: Path) -> None:
    """Kind: a cap on connections. Everybody may watch health, so that keeps no connection open."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with serving(tmp_path / "c.sqlite", "--max-connections", "20") as server:
        async with AsyncExitStack() as stack:
            for _ in range(6):
                for _ in range(10):
                    channel = grpc.aio.insecure_channel(server.address, options)
                    await stack.enter_async_context(channel)
                    watch = health_pb2_grpc.HealthStub(channel).Watch
                    stack.callback(watch(health_pb2.HealthCheckRequest()).cancel)
                await asyncio.sleep(0.2)
            channel = grpc.aio.insecure_channel(server.address, options)
            await stack.enter_async_context(channel)
            route = rgrpc.RouterServiceStub(channel).Route
            request = rpb.RouteRequest(text="What is 1 + 1?")
            assert (await route(request, timeout=10, wait_for_ready=True)).selected


async def test_only_what_no_whole_message_explains_counts_as_sent_in_part() -> None:
    messages = HalfSentMessages(quota_bytes=1000 * CALL_BYTES)
    streams = {name: Stream(messages, name) for name in ("whole", "part", "small", "idle")}
    tasks = [asyncio.create_task(stream.wait()) for stream in streams.values()]
    await asyncio.sleep(0)
    messages.arrived("whole", 5000 * CALL_BYTES)
    received = {"whole": 5000 * CALL_BYTES, "part": 900 * CALL_BYTES, "small": 99 * CALL_BYTES}
    assert messages.weigh(messages.whole(), received) == 0
    received["part"] += 200 * CALL_BYTES
    assert messages.weigh(messages.whole(), received) == 1
    await asyncio.sleep(0.01)
    assert [name for name, stream in streams.items() if stream.ended] == ["part"]
    assert messages.weigh(messages.whole(), received) == 0  # its memory is free
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # What came before the first call in flight is over, whatever it was.
    received["idle"] = 9000 * CALL_BYTES
    messages.weigh(messages.whole(), received)
    again = asyncio.create_task(Stream(messages, "idle").wait())
    await asyncio.sleep(0)
    assert messages.weigh(messages.whole(), received) == 0
    again.cancel()


class Stream:
    """A stream of `name` that waits for a message. ended: whether it was ended."""

    def __init__(self, messages: HalfSentMessages, name: str) -> None:
        self._messages, self._name, self.ended = messages, name, False

    async def wait(self) -> None:
        with self._messages.calling(self._name):
            try:
                async with asyncio.timeout(None) as limit:
                    with self._messages.waiting(self._name, self._name, limit):
                        await asyncio.Event().wait()
            except TimeoutError:
                self.ended = True
                await asyncio.Event().wait()
