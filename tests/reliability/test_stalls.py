"""Kind: repeated fields are walked in the event loop before they are counted.

Every field of every request of the public API is sent to a real server at its largest, and one over
it, while a task in the server's event loop measures how late it is woken. The cases are made from
the descriptors, so that new fields are tried too. A process of its own sends them.

It measures time, so it runs by hand, on an idle machine:

    STALLS=1 python -m pytest tests/reliability/test_stalls.py
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from engine.api.candidate import MAX_CANDIDATES, MAX_TASK_CHARS, TEST_TASKS
from engine.api.limits import MAX_BATCH_REQUESTS, MAX_MESSAGE_BYTES, MIB
from engine.api.proto import candidate_to
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import external_processor_pb2 as epb
from engine.pb import router_service_pb2 as rpb
from engine.registry.catalog import read_catalog
from engine.serving import components
from engine.serving.rpc.wire import MAX_FIELDS, STEP_BYTES
from engine.serving.server import AuthConfig, start_server
from engine.serving.settings import EXTPROC_MAX_BODY_BYTES, Settings
from engine.serving.telemetry import Telemetry
from tests.reliability.fuzz.grpc import methods
from tests.reliability.fuzz.messages import length_delimited, method_path, varint
from tools.processes import BUNDLE

BOUND_S, TRIES, TICK_S, CALL_S = 0.020, 3, 0.001, 3.0
PROCESS = epb.DESCRIPTOR.services_by_name["ExternalProcessor"].methods_by_name["Process"]
METHODS = {method.name: method for method in (*methods(), PROCESS)}
ROOM = 4096  # for what a message holds besides the field
COUNTS = (1000, 1001, MAX_FIELDS - 100, MAX_FIELDS + 1)
SIZES = (STEP_BYTES - ROOM, STEP_BYTES + 1)
NUMBERS = {FieldDescriptor.CPPTYPE_DOUBLE: b"\xff" * 6 + b"\xef\x7f"}  # the largest; else a varint


@dataclass(frozen=True)
class Hostile:
    """One call. messages: returns the bytes of what to send."""

    name: str
    messages: Callable[[], list[bytes]]


def valid(kind: Descriptor) -> bytes:
    """Return a valid message, so that the other field is looked at too."""
    made: dict[str, Any] = {
        "RouteRequest": rpb.RouteRequest(text="Hi"),
        "Conversation": rpb.Conversation(messages=[user_turn()]),
        "Message": user_turn(),
        "BatchRouteRequest": rpb.BatchRouteRequest(requests=[rpb.RouteRequest(text="Hi")]),
        "StreamRouteRequest": rpb.StreamRouteRequest(request=rpb.RouteRequest(text="Hi")),
        "Candidate": candidate(),
        "CreateCandidateRequest": cpb.CreateCandidateRequest(validate_only=True),
        "UpdateCandidateRequest": cpb.UpdateCandidateRequest(validate_only=True),
        "BatchReplaceCandidatesRequest": cpb.BatchReplaceCandidatesRequest(validate_only=True),
        "DeleteCandidateRequest": cpb.DeleteCandidateRequest(validate_only=True),
        "RollbackRevisionRequest": cpb.RollbackRevisionRequest(validate_only=True),
    }
    message = made.get(kind.name)
    return b"" if message is None else bytes(message.SerializeToString())


def user_turn() -> rpb.Message:
    return rpb.Message(role=rpb.ROLE_USER, text_parts=["Hi"])


@cache
def candidate() -> Any:
    message = candidate_to(read_catalog(BUNDLE / "zoo.json")[0])
    message.name, message.etag = "candidates/stalls", ""
    return message


def http_headers() -> bytes:
    """The first message of ext_proc for a request whose body is to be read."""
    pairs = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
    headers = [epb.HeaderValue(key=k, raw_value=v.encode()) for k, v in pairs.items()]
    message = epb.ProcessingRequest(
        request_headers=epb.HttpHeaders(headers=epb.HeaderMap(headers=headers)),
        protocol_config=epb.ProtocolConfiguration(request_body_mode=epb.BUFFERED),
    )
    return bytes(message.SerializeToString())


def largest(method: MethodDescriptor) -> int:
    return EXTPROC_MAX_BODY_BYTES + MIB if method is PROCESS else MAX_MESSAGE_BYTES


def hostile(method: MethodDescriptor) -> Iterator[Hostile]:
    """Yield the calls of a method."""
    for path in paths(method.input_type, ()):
        name = ".".join(field.name for field in path)
        for label, value in values(path[-1], largest(method) - ROOM):
            yield Hostile(f"{name}: {label}", partial(wrapped, method, path, value))
    one = partial(lambda size: [length_delimited(111, b"a" * size)], largest(method) - ROOM)
    yield Hostile("one unknown field", one)
    flood = partial(lambda size: [b"\xf8\x06\x01" * (size // 3)], largest(method) - ROOM)
    yield Hostile("unknown fields", flood)
    yield from SPECIAL.get(method.name, ())


def paths(
    kind: Descriptor, above: tuple[FieldDescriptor, ...]
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the path of every field; a message that holds itself is entered twice."""
    for field in kind.fields:
        path = (*above, field)
        yield path
        inner = field.message_type
        if inner is not None and sum(f.message_type is inner for f in above) < 2:
            yield from paths(inner, path)


def values(field: FieldDescriptor, size: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield (name, function that makes the bytes) of one field at its largest and one over it."""
    if field.message_type is not None or field.type == FieldDescriptor.TYPE_STRING:
        if field.is_repeated:
            body = b"" if field.message_type is None else valid(field.message_type)
            for entry, kind in {b"": "empty", body: "valid"}.items():
                one = length_delimited(field.number, entry)
                for count in {
                    *COUNTS,
                    MAX_BATCH_REQUESTS,
                    MAX_BATCH_REQUESTS + 1,
                    size // len(one),
                }:
                    if len(one) * count <= size:
                        yield f"{count} {kind} entries", partial(bytes.__mul__, one, count)
    elif field.type != FieldDescriptor.TYPE_BYTES:
        tail = NUMBERS.get(field.cpp_type)
        tag = varint(field.number << 3 | (0 if tail is None else 1))
        value = varint(2**63 - 1) if tail is None else tail[:8]
        yield "largest number", partial(bytes, tag + value)
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        for length in (*SIZES, size, size + ROOM):
            text = partial(
                lambda n, length: length_delimited(n, b"ab, " * (length // 4)), field.number
            )
            yield f"{length} bytes", partial(text, length)


def wrapped(
    method: MethodDescriptor, path: tuple[FieldDescriptor, ...], value: Callable[[], bytes]
) -> list[bytes]:
    """Return the messages of a call with this field in an otherwise valid request."""
    raw = value()
    for field in reversed(path[:-1]):
        raw = length_delimited(field.number, valid(field.message_type) + raw)
    if method is not PROCESS:
        return [valid(method.input_type) + raw]
    return [raw] if path[0].name.startswith("request_headers") else [http_headers(), raw]


def full_table(task_chars: int) -> list[bytes]:
    """A table of as many candidates as are allowed. task_chars: of the name of each task."""
    request = cpb.BatchReplaceCandidatesRequest(validate_only=True)
    task = ("word, " * task_chars)[: task_chars - 3]
    results = [{"task_keywords": f"{n:02} {task}", "accuracy": 0.5} for n in range(TEST_TASKS)]
    for number in range(MAX_CANDIDATES):
        request.candidates.add(name=f"candidates/c{number}", aptitude=results)
    return [request.SerializeToString()]


def chat(piece: bytes) -> list[bytes]:
    """A chat completion with as many copies of `piece` as the largest body takes."""
    count = (EXTPROC_MAX_BODY_BYTES - ROOM) // (len(piece) + 1)
    body = b'{"model":"x","messages":[' + b",".join([piece] * count) + b"]}"
    message = epb.ProcessingRequest(request_body=epb.HttpBody(body=body, end_of_stream=True))
    return [http_headers(), message.SerializeToString()]


SPECIAL: dict[str, list[Hostile]] = {
    "BatchReplaceCandidates": [
        Hostile("a full table", partial(full_table, MAX_TASK_CHARS)),
        Hostile("50,000 problems", partial(full_table, MAX_TASK_CHARS + 1)),
    ],
    "Process": [
        Hostile("turns", partial(chat, b'{"role":"user","content":"Hi"}')),
        Hostile("numbers", partial(chat, b"1")),
        Hostile("long turns", partial(chat, b'{"role":"user","content":"%s"}' % (b"ab, " * 5000))),
    ],
}


def send(address: str, method: str, index: int) -> str:
    """Make call `index` of a method, in a process of its own; return the name of its code."""
    descriptor = METHODS[method]
    messages = list(hostile(descriptor))[index].messages()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        grpc.channel_ready_future(channel).result(CALL_S)
        try:
            for _ in channel.stream_stream(method_path(descriptor))(iter(messages), timeout=CALL_S):
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


class Ticker:
    """A task that wakes every TICK_S. longest: how late it was at worst, in seconds. queued:
    for how long of that its thread was ready to run, but had no processor.

    Of a delay, no more counts than the processor time that all threads of the process took in it:
    the rest is other programs' work. If they keep one processor, what is queued is theirs as well,
    because the threads of this process share the other one.
    """

    def __init__(self) -> None:
        self.longest = self.queued = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun, used, queued = loop.time(), time.process_time(), queued_s()
            await asyncio.sleep(TICK_S)
            delay = min(loop.time() - begun - TICK_S, time.process_time() - used)
            if delay > self.longest:
                self.longest, self.queued = delay, queued_s() - queued


def queued_s() -> float:
    """Return for how long this thread has waited for a processor since it began."""
    state = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    return int(state.split()[1]) / 1e9


@asynccontextmanager
async def in_this_process(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Serve; yield the addresses of the services and of ext_proc."""
    settings = Settings(
        bundle=BUNDLE,
        address="127.0.0.1:0",
        extproc_address="127.0.0.1:0",
        candidates_db=str(folder / "s.sqlite"),
        outcomes_db=str(folder / "outcomes.sqlite"),
        inference_threads=1,
    )
    running = await start_server(components.build(settings, Telemetry()), AuthConfig(None, None))
    gc.collect()
    gc.freeze()  # as serve() does
    try:
        yield running.listeners[0].address, running.listeners[-1].address
    finally:
        gc.unfreeze()
        await running.stop(1)


@pytest.mark.slow
@pytest.mark.skipif("STALLS" not in os.environ, reason="measures time; set STALLS=1")
@pytest.mark.parametrize("name", METHODS)
async def test_no_field_at_its_largest_stalls_the_event_loop(name: str, tmp_path: Path) -> None:
    """Kind: messages that hold up everybody. The longest stall is below 20 ms, as the median of
    three tries, because the machine that runs the tests has other work too."""
    loop, stalls = asyncio.get_running_loop(), dict[str, list[float]]()
    spawn = multiprocessing.get_context("spawn")
    async with in_this_process(tmp_path) as (address, extproc_address):
        with ProcessPoolExecutor(1, spawn) as sender:
            target = extproc_address if name == "Process" else address
            await loop.run_in_executor(sender, send, target, name, 0)  # what is loaded only once
            for index, case in enumerate(hostile(METHODS[name])):
                tries = stalls[case.name] = []
                while not tries or (len(tries) < TRIES and max(tries) > BOUND_S):
                    ticker = Ticker()
                    ticking = asyncio.create_task(ticker.run())
                    await loop.run_in_executor(sender, send, target, name, index)
                    ticking.cancel()
                    with suppress(asyncio.CancelledError):
                        await ticking
                    tries.append(ticker.longest)
                    if ticker.longest > BOUND_S:
                        ms, queued = 1000 * ticker.longest, 1000 * ticker.queued
                        print(f"{case.name}: {ms:.1f} ms, {queued:.1f} without a processor")
    medians = {case: round(1000 * statistics.median(tries), 1) for case, tries in stalls.items()}
    over = {case: ms for case, ms in medians.items() if ms > 1000 * BOUND_S}
    print(len(medians), "calls, longest median stall in ms:", max(medians.values()))
    assert not over
