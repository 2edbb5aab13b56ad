"""Kind: repeated fields are walked in the event loop before they are counted."""

from __future__ import annotations

import asyncio
from unittest import mock

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc as rgrpc
from engine.serving.rpc import wire
from tests.reliability.fuzz.grpc import methods
from tests.reliability.fuzz.messages import length_delimited, make
from tools.processes import Server

METHODS = methods()


def in_steps(kind: type[Message], raw: bytes, **limits: int) -> Message:
    message = kind()
    with mock.patch.multiple(wire, **limits):
        asyncio.run(wire.parse_in_steps(message, raw))
    return message


@given(
    method=st.sampled_from(METHODS),
    number=st.integers(0, 10_000),
    step=st.sampled_from([1, 8, 64, 1024]),
)
def test_a_message_that_is_parsed_in_steps_is_the_same(
    method: object, number: int, step: int
) -> None:
    kind = method.input_type._concrete_class  # type: ignore[attr-defined]
    raw = make(method, 5, number)  # type: ignore[arg-type]
    try:
        expected = kind.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            in_steps(kind, raw, STEP_BYTES=step)
    else:
        try:
            message = in_steps(kind, raw, STEP_BYTES=step)
        except DecodeError:
            assume(False)  # a group, which no schema here has
        else:
            assert message == expected


def entries(field: int, body: bytes, count: int) -> bytes:
    """`count` entries of a repeated field; field and size below 16 and 128."""
    return (bytes([field << 3 | 2, len(body)]) + body) * count


def nested(field: int, body: bytes) -> bytes:
    size, out = len(body), bytearray([field << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size]) + body


FLOODS: dict[str, tuple[type[Message], bytes]] = {
    "tags of a policy": (rpb.RouteRequest, nested(3, entries(10, b"a", 1_000_000))),
    "allowed candidates": (rpb.RouteRequest, nested(3, entries(4, b"", 200_000))),
    "turns": (rpb.RouteRequest, nested(2, entries(1, b"", 200_000))),
    "texts of one turn": (rpb.RouteRequest, nested(2, nested(1, entries(2, b"", 200_000)))),
    "requests of a batch": (rpb.BatchRouteRequest, entries(1, b"", 200_000)),
    "tables": (cpb.BatchReplaceCandidatesRequest, entries(1, b"", 200_000)),
    "unknown fields": (rpb.GetServerInfoRequest, b"\xf8\x06\x01" * 200_000),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_refused_after_a_bounded_number_of_fields(name: str) -> None:
    kind, raw = FLOODS[name]
    walk = wire._Walk()
    with pytest.raises(InvalidInputError, match="more than 50000 entries"):
        asyncio.run(walk.merge(kind(), memoryview(raw), ""))
    assert walk.fields == wire.MAX_FIELDS + 1


@pytest.mark.parametrize("label", ["required_tags", "required_features", "allowed_regions"])
def test_words_below_that_are_counted_before_they_are_sorted(
    shared_server: Server, label: str
) -> None:
    policy = rpb.Policy(**{label: ["a"] * 1001})
    with grpc.insecure_channel(shared_server.address) as channel:
        route = rgrpc.RouterServiceStub(channel).Route
        with pytest.raises(grpc.RpcError) as failed:
            route(rpb.RouteRequest(text="Hi", policy=policy), timeout=30)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{label} has 1001 words" in failed.value.details().replace(":", "")


@pytest.mark.parametrize(
    ("kind", "above", "number", "name"),
    [
        (rpb.RouteRequest, (), 1, "text"),
        (rpb.RouteRequest, (2, 1), 2, "conversation.messages.text_parts"),
        (rpb.RouteRequest, (4,), 1, "session.id"),
        (cpb.CreateCandidateRequest, (1, 3), 1, "candidate.aptitude.task_keywords"),
        (rpb.RecordOutcomeRequest, (), 111, "unknown"),
    ],
)
def test_a_string_that_takes_long_to_parse_is_refused_before(
    kind: type[Message], above: tuple[int, ...], number: int, name: str
) -> None:
    """Kind: messages that hold up everybody. One string cannot be parsed in steps."""
    for size in (1 << 22, (1 << 22) + 1):
        raw = length_delimited(number, b"a" * size)
        for outer in reversed(above):
            raw = length_delimited(outer, raw)
        if size > 1 << 22:
            with pytest.raises(InvalidInputError, match=f"{name}:? is {size} bytes"):
                in_steps(kind, raw, STEP_BYTES=1 << 16)
        else:
            assert in_steps(kind, raw, STEP_BYTES=1 << 16) == kind.FromString(raw)
