"""Send random sequences of ext_proc messages over a real stream: any order, any mode, damaged.

    python -m tests.reliability.fuzz.extproc [--sequences 20000] [--seed 1]

It fails if the server ends, a stream hangs, a stream ends with a status other than OK and
INVALID_ARGUMENT (for bytes that are no message), a response answers no request, or an error is
internal. The cause is printed with the seed and number that make it again. The last line of stdout
is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from bench.report import Target, environment, finish
from engine.pb import external_processor_pb2 as pb
from tests.reliability.fuzz.messages import MUTATIONS
from tools.processes import free_port, serving

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CONCURRENCY, HANG_S = 16, 20.0
EXPECTED = ("OK", "INVALID_ARGUMENT")
MODES = (0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 5, 99)  # of ProcessingMode.BodySendMode
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/", "")
TYPES = ("application/json", "application/json; charset=utf-8", "", "text/plain", "image/png")
OVERRIDES = {
    "x-modelsat-allowed-candidates": ("yi-6b-chat", "yi-6b-chat,unknown", ",", "\xff"),
    "x-modelsat-cost-sensitivity": ("0.5", "-1", "nan", "x"),
    "x-modelsat-budget-usd": ("1", "inf"),
    "x-modelsat-session": ("s1", "s" * 500),
    "content-length": ("10", "99999999", "x", "²"),
    "content-encoding": ("gzip", "identity"),
    "traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-x"),
}
BODIES = (
    b'{"model": "auto", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],"model":"auto"}',
    b'{"model": "auto", "input": "Hi", "instructions": "Be brief.", "tools": [{}]}',
    b'{"model": "yi-6b-chat", "messages": []}',
    b'{"model": "auto", "model": "yi-6b-chat"}',
    b'{"model": "auto", "messages": [{"role": "user", "content": []}]}',
    b'{"model": {"model": "auto"}, "messages": {"model": "auto"}}',
    b'{"model": "a\\r\\nx: y"}',
    b"[" * 5000,
    b"",
    b"{}",
    b"\xff\xfe",
)
KINDS = (
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
)


@dataclass
class FuzzResult:
    """responses: kind, HTTP status or gRPC status -> count. failures: how to repeat each."""

    responses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def sequence(seed: int, number: int) -> list[bytes]:
    """Return the serialized messages of one stream."""
    random = Random(f"{seed}/{number}")
    ordered = [
        "request_headers",
        *["request_body"] * random.choice((1, 1, 2, 5)),
        "request_trailers",
    ]
    ordered += ["response_headers", "response_body", "response_trailers"]
    if random.random() < 0.4:
        random.shuffle(ordered)
    kinds = ordered[: random.randrange(len(ordered) + 1)]
    kinds += random.choices(KINDS, k=random.choice((0, 0, 0, 1, 3)))
    mode, body = random.choice(MODES), _body(random)
    pieces = _pieces(body, kinds.count("request_body"))
    messages = []
    for i, kind in enumerate(kinds):
        message = pb.ProcessingRequest()
        getattr(message, kind).SetInParent()
        if kind == "request_headers":
            _fill_headers(message, random)
        elif kind == "request_body":
            message.request_body.body = pieces.pop(0) if pieces else b""
            ends = not pieces if random.random() < 0.9 else random.random() < 0.5
            message.request_body.end_of_stream = ends
        elif kind == "response_body":
            message.response_body.body = body[:200]
        if i == 0 and random.random() < 0.9:
            message.protocol_config.request_body_mode = mode
            message.protocol_config.response_body_mode = random.choice(MODES)
        message.observability_mode = random.random() < 0.01
        raw = message.SerializeToString()
        messages.append(random.choice(MUTATIONS)(raw, random) if random.random() < 0.03 else raw)
    return messages


def _body(random: Random) -> bytes:
    body = random.choice(BODIES)
    if random.random() < 0.2 and body:
        at = random.randrange(len(body))
        body = body[:at] + random.choice((b"", b"\0", b'"', b"}", b"\\")) + body[at + 1 :]
    if random.random() < 0.02:
        body = body[:-1] + b', "padding": "' + b"x" * random.choice((70_000, 2_000_000)) + b'"}'
    return body


def _pieces(body: bytes, count: int) -> list[bytes]:
    step = -(-len(body) // max(1, count)) or 1
    return [body[i * step : (i + 1) * step] for i in range(count)]


def _fill_headers(message: Any, random: Random) -> None:
    headers = {
        ":method": "POST",
        ":path": random.choice(PATHS) if random.random() < 0.3 else PATHS[0],
    }
    if random.random() < 0.8:
        headers["content-type"] = random.choice(TYPES) if random.random() < 0.3 else TYPES[0]
    for name, values in OVERRIDES.items():
        if random.random() < 0.05:
            headers[name] = random.choice(values)
    for key, value in headers.items():
        raw = value.encode("latin-1")
        message.request_headers.headers.headers.add(key=key, raw_value=raw)
    message.request_headers.end_of_stream = random.random() < 0.05
    if random.random() < 0.1:
        values = (["yi-6b-chat"], "yi-6b-chat", [], 7, [[]], {"a": 1}, None)
        metadata = message.metadata_context.filter_metadata["modelsat"]
        metadata.update({"allowed_candidates": random.choice(values)})


async def fuzz(address: str, seed: int, numbers: range) -> FuzzResult:
    """Send the sequences of these numbers, CONCURRENCY at a time."""
    total, left = FuzzResult(), iter(numbers)
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(METHOD)

        async def worker() -> None:
            for number in left:
                one = FuzzResult()
                await _send(method, sequence(seed, number), number % 50 == 0, one)
                total.responses += one.responses
                total.failures += [f"seed {seed} number {number}: {f}" for f in one.failures]

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return total


async def _send(method: Any, messages: list[bytes], cancel: bool, result: FuzzResult) -> None:
    """Send one sequence and check the responses. cancel: cancel the call at the first response."""
    call = method(_stream(messages), timeout=HANG_S)
    responses: list[bytes] = []
    try:
        async for response in call:
            responses.append(response)
            if cancel:
                call.cancel()
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:  # by the cancel() above
        result.responses["cancelled"] += 1
        return
    code = (await call.code()).name
    details = str(await call.details())
    if code == "INTERNAL" and details.startswith("Internal error from Core"):
        # grpc.aio's own error: the stream ended while the client was still writing.
        code = "CLIENT"
    result.responses[code] += 1
    if code not in (*EXPECTED, "CLIENT") and not cancel:
        result.failures.append(f"{code}: {details[:200]}")
    if code == "INVALID_ARGUMENT" and all(map(_is_message, messages)):
        result.failures.append("INVALID_ARGUMENT, although every message is valid")
    _check(messages, responses, result)


async def _stream(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def _is_message(raw: bytes) -> bool:
    with suppress(DecodeError):
        return pb.ProcessingRequest.FromString(raw).WhichOneof("request") is not None
    return False


def _check(messages: list[bytes], responses: list[bytes], result: FuzzResult) -> None:
    """Record a failure for each response without a request, and for each internal error."""
    requested = set()
    for raw in messages:
        with suppress(DecodeError):
            requested.add(pb.ProcessingRequest.FromString(raw).WhichOneof("request"))
    for raw in responses:
        response = pb.ProcessingResponse.FromString(raw)
        kind = response.WhichOneof("response")
        if kind != "immediate_response":
            result.responses[str(kind)] += 1
            if kind not in requested:
                result.failures.append(f"{kind} answers no request")
            continue
        status = response.immediate_response.status.code
        error = json.loads(response.immediate_response.body)["error"]
        result.responses[f"HTTP {status} {error['code']}"] += 1
        if error["code"] == "internal":
            result.failures.append(f"HTTP {status}: {error['message'][:200]}")


def statuses(metrics: str) -> dict[str, int]:
    """Return status code -> number of ended streams, by the server's own metrics at HOST:PORT."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    line = rf'modelsat_requests_total{{code="(\w+)",method="{METHOD[1:]}"}} (\S+)'
    return {code: int(float(count)) for code, count in re.findall(line, text)}


def main() -> int:
    """Fuzz and print; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=20_000, help="how many (default 20,000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sequences (default 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.sqlite"
        metrics = f"127.0.0.1:{free_port()}"
        addresses = ("--extproc-address", "127.0.0.1:0", "--metrics-address", metrics)
        with serving(store, *addresses) as server:
            address = server.extproc_address
            asyncio.run(fuzz(address, options.seed, range(options.sequences // 10)))  # warm
            before = server.resident_mb()
            result = asyncio.run(fuzz(address, options.seed, range(options.sequences)))
            growth = server.resident_mb() / before - 1
            alive = server.process.poll() is None
            ended = statuses(metrics)
    for failure in result.failures[:20]:
        print(failure)
    unexpected = sum(count for code, count in ended.items() if code not in (*EXPECTED, "CANCELLED"))
    targets = [
        Target("failures", len(result.failures) + (not alive), "<= 0"),
        Target("streams that ended with another status", unexpected, "<= 0"),
        Target("memory growth", growth, "<= 0.1"),
    ]
    report = {
        **environment(sequences=options.sequences),
        "responses": dict(result.responses),
        "statuses": ended,
    }
    return finish("fuzz_extproc", report, targets)


if __name__ == "__main__":
    sys.exit(main())
