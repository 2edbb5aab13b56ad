"""Random sequences of ext_proc messages over the real stream: in any order, of any mode, damaged.

    python -m tests.reliability.fuzz.extproc [--sequences 20000] [--seed 1]

Fails on an end of the server, a stream that hangs, a status but OK and INVALID_ARGUMENT (a message
that is none), an answer to what was not asked, and an error inside the server. What caused it is
printed with seed and number, which make it again. The last line on stdout is one JSON object.
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

from bench.report import Target, conditions, finish
from engine.pb import external_processor_pb2 as pb
from tests.reliability.fuzz.messages import DAMAGES
from tools.processes import free_port, serving

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CONCURRENCY, HANG_S = 16, 20.0
RIGHT = ("OK", "INVALID_ARGUMENT")
MODES = (0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 5, 99)  # of ProcessingMode.BodySendMode
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/", "")
TYPES = ("application/json", "application/json; charset=utf-8", "", "text/plain", "image/png")
WISHES = {
    "x-modelsat-allowed-candidates": ("yi-6b-chat", "yi-6b-chat,nobody", ",", "\xff"),
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
class Found:
    """answers: kind, HTTP status or gRPC status -> count. failures: how to repeat each."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def sequence(seed: int, number: int) -> list[bytes]:
    """The messages of one stream."""
    random = Random(f"{seed}/{number}")
    usual = ["request_headers", *["request_body"] * random.choice((1, 1, 2, 5)), "request_trailers"]
    usual += ["response_headers", "response_body", "response_trailers"]
    if random.random() < 0.4:
        random.shuffle(usual)
    kinds = usual[: random.randrange(len(usual) + 1)]
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
        messages.append(random.choice(DAMAGES)(raw, random) if random.random() < 0.03 else raw)
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
    for name, values in WISHES.items():
        if random.random() < 0.05:
            headers[name] = random.choice(values)
    for key, value in headers.items():
        raw = value.encode("latin-1")
        message.request_headers.headers.headers.add(key=key, raw_value=raw)
    message.request_headers.end_of_stream = random.random() < 0.05
    if random.random() < 0.1:
        wishes = message.metadata_context.filter_metadata["modelsat"]
        given = {
            "allowed_candidates": random.choice(
                (["yi-6b-chat"], "yi-6b-chat", [], 7, [[]], {"a": 1}, None)
            )
        }
        wishes.update(given)


async def fuzz(address: str, seed: int, numbers: range) -> Found:
    """Send these sequences, CONCURRENCY at a time."""
    found, left = Found(), iter(numbers)
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(METHOD)

        async def one_after_the_other() -> None:
            for number in left:
                one = Found()
                await _one(method, sequence(seed, number), number % 50 == 0, one)
                found.answers += one.answers
                found.failures += [f"seed {seed} number {number}: {why}" for why in one.failures]

        await asyncio.gather(*(one_after_the_other() for _ in range(CONCURRENCY)))
    return found


async def _one(method: Any, messages: list[bytes], leave: bool, found: Found) -> None:
    """leave: hang up in the middle."""
    call = method(_sent(messages), timeout=HANG_S)
    answers: list[bytes] = []
    try:
        async for answer in call:
            answers.append(answer)
            if leave:
                call.cancel()
    except grpc.aio.AioRpcError:
        pass
    except asyncio.CancelledError:  # ours
        found.answers["left"] += 1
        return
    code = (await call.code()).name
    details = str(await call.details())
    if code == "INTERNAL" and details.startswith("Internal error from Core"):
        # grpc.aio's own: the stream had ended while the client was still writing.
        code = "CLIENT"
    found.answers[code] += 1
    if code not in (*RIGHT, "CLIENT") and not leave:
        found.failures.append(f"{code}: {details[:200]}")
    if code == "INVALID_ARGUMENT" and all(map(_is_message, messages)):
        found.failures.append("INVALID_ARGUMENT, and every message is one")
    _judge(messages, answers, found)


async def _sent(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def _is_message(raw: bytes) -> bool:
    with suppress(DecodeError):
        return pb.ProcessingRequest.FromString(raw).WhichOneof("request") is not None
    return False


def _judge(messages: list[bytes], answers: list[bytes], found: Found) -> None:
    """Nothing is answered that was not asked, and no error is the server's own."""
    asked = set()
    for raw in messages:
        with suppress(DecodeError):
            asked.add(pb.ProcessingRequest.FromString(raw).WhichOneof("request"))
    for raw in answers:
        answer = pb.ProcessingResponse.FromString(raw)
        kind = answer.WhichOneof("response")
        if kind != "immediate_response":
            found.answers[str(kind)] += 1
            if kind not in asked:
                found.failures.append(f"answers {kind}, which was not asked")
            continue
        status = answer.immediate_response.status.code
        error = json.loads(answer.immediate_response.body)["error"]
        found.answers[f"HTTP {status} {error['code']}"] += 1
        if error["code"] == "internal":
            found.failures.append(f"HTTP {status}: {error['message'][:200]}")


def statuses(metrics: str) -> dict[str, int]:
    """How the server ended its streams, as it counts them itself; metrics: HOST:PORT."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as page:
        text = page.read().decode()
    line = rf'modelsat_requests_total{{code="(\w+)",method="{METHOD[1:]}"}} (\S+)'
    return {code: int(float(count)) for code, count in re.findall(line, text)}


def main() -> int:
    """Run it; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.sqlite"
        metrics = f"127.0.0.1:{free_port()}"
        told = ("--extproc-address", "127.0.0.1:0", "--metrics-address", metrics)
        with serving(store, *told) as server:
            address = server.extproc_address
            asyncio.run(fuzz(address, given.seed, range(given.sequences // 10)))  # warm
            before = server.resident_mb()
            found = asyncio.run(fuzz(address, given.seed, range(given.sequences)))
            growth = server.resident_mb() / before - 1
            alive = server.process.poll() is None
            ended = statuses(metrics)
    for failure in found.failures[:20]:
        print(failure)
    wrong = sum(count for code, count in ended.items() if code not in (*RIGHT, "CANCELLED"))
    targets = [
        Target("failures", len(found.failures) + (not alive), "<= 0"),
        Target("streams that the server ended otherwise", wrong, "<= 0"),
        Target("memory growth", growth, "<= 0.1"),
    ]
    result = {
        **conditions(sequences=given.sequences),
        "answers": dict(found.answers),
        "statuses": ended,
    }
    return finish("fuzz_extproc", result, targets)


if __name__ == "__main__":
    sys.exit(main())
