"""Kind: a fair share of one server. Calls of Route wait for a turn before they are parsed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from engine.api.errors import WaitTooLongError
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.serving.auth.tokens import new_token
from engine.serving.rpc.fair_slots import FairSlots
from tools.processes import serving

TEXT = "A train leaves at 9:40 and arrives at 13:05; how long is the journey? " * 4


async def codes_of(address: str, token: str, calls: int, timeout_s: float) -> Counter[str]:
    """Make calls at once; count the kinds of the answers, and the codes of refusals."""
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)

        async def call(number: int) -> str:
            request = pb.RouteRequest(text=f"{TEXT} Case {number}.")
            try:
                answer = await stub.Route(request, metadata=metadata, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                status, retry = rpc_status.from_call(error), error_details_pb2.RetryInfo()
                has_retry = status is not None and any(d.Unpack(retry) for d in status.details)
                return error.code().name + (" with RetryInfo" if has_retry else "")
            return pb.DecisionKind.Name(answer.kind)

        await channel.channel_ready()
        return Counter(await asyncio.gather(*map(call, range(calls))))


@pytest.mark.parametrize(
    ("fallback", "refused"),
    [
        ("off", "RESOURCE_EXHAUSTED with RetryInfo"),
        ("deadline", "DECISION_KIND_FALLBACK"),
    ],
)
async def test_calls_whose_turn_comes_too_late_are_answered_before_their_deadline(
    tmp_path: Path, fallback: str, refused: str
) -> None:
    """More calls than the lane takes within the deadline, all of one principal. The slower of the
    forward passes serves, so that they are more."""
    text, entry = new_token("route", "gateway-1")
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"tokens": [vars(entry)]}))
    flags = ("--auth-tokens-file", str(file), "--score-cache-mb", "0", "--fallback", fallback)
    onnx = ("--device", "cpu-onnx")
    with serving(tmp_path / "candidates.sqlite", *flags, *onnx) as server:
        await codes_of(server.address, text, 1, 30)
        seen = await codes_of(server.address, text, 800, 2.5)
    assert seen["DECISION_KIND_RANKED"] > 0
    assert seen[refused] > 400, seen
    assert seen[refused] + seen["DECISION_KIND_RANKED"] > 760, seen  # a busy machine loses a few


async def test_who_holds_no_slot_is_admitted_at_once() -> None:
    slots, order = FairSlots(2, 8, "calls", first_at_once=True), list[str]()
    release = asyncio.Event()

    async def call(principal: str) -> None:
        async with slots.slot(principal):
            order.append(principal)
            await release.wait()

    tasks = [asyncio.create_task(call(who)) for who in ("heavy",) * 5 + ("light",) * 2 + ("other",)]
    await asyncio.sleep(0)
    assert order == ["heavy", "heavy", "light", "other"]
    assert slots.waiting == 4
    release.set()
    await asyncio.gather(*tasks)
    assert Counter(order) == {"heavy": 5, "light": 2, "other": 1}
    assert not slots.is_full


@pytest.mark.parametrize("left_s", [0.001, 0.05, 0.2])
async def test_a_call_leaves_the_line_before_its_deadline(left_s: float) -> None:
    slots = FairSlots(1, 8, "calls")
    async with slots.slot("heavy"):
        waits = asyncio.create_task(slots.slot("heavy").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(WaitTooLongError):
            async with slots.slot("heavy", left_s):
                pass
        assert slots.waiting == 1  # the one without a deadline
    await waits


async def test_the_throughput_estimate_refuses_a_call_long_before_its_deadline() -> None:
    """About 50 waiting calls take 10 ms each, so one with 0.3 s left gives up after a quarter."""
    slots, done = FairSlots(1, 64, "calls"), list[int]()

    async def call(number: int) -> None:
        async with slots.slot("heavy"):
            await asyncio.sleep(0.01)
            done.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(62)]
    while len(done) < 12:
        await asyncio.sleep(0)
    with pytest.raises(WaitTooLongError) as refusal:
        async with slots.slot("heavy", 0.3):
            pass
    assert len(done) < 32  # of 0.3 s, less than two thirds have passed
    assert refusal.value.retry_after_s > 0
    await asyncio.gather(*tasks)
