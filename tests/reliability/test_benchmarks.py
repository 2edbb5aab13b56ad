"""The arithmetic of the benchmarks, and that both run against a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bench.capacity import Service, fit, latencies
from bench.latency import texts
from bench.load_generator import Calls, Generator, Seen, closed_loop, open_loop
from bench.report import Target, markdown
from bench.roofline import Shape, products, session
from tests.reliability import overload, soak
from tests.reliability.faults import cases
from tests.reliability.fuzz import grpc
from tests.reliability.fuzz import messages as messages
from tools.processes import serving

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=3, width=8, keys=4, inner=12, head=2)


def test_the_products_are_the_operations_that_are_counted(tmp_path: Path) -> None:
    """Counted once more by hand: 2 x rows x inputs x outputs of each matrix."""
    rows, candidates, seen = 10, 2, 9
    attention = 2 * 8 * seen  # scores and their products with the values, over all heads
    full = rows * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 8 * 12 + 8 * 12 + 12 * 8 + attention)
    last = rows * (8 * 4 + 8 * 4) + candidates * (8 * 8 + 8 * 8 + 3 * 8 * 12 + attention)
    assert SHAPE.operations(rows, candidates, seen) == 2 * (2 * full + last)
    products(SHAPE, rows, candidates, seen, tmp_path / "products.onnx")
    run = session(tmp_path / "products.onnx", threads=1)
    feeds = {i.name: np.ones(i.shape, dtype=np.float32) for i in run.get_inputs()}
    (y,) = run.run(["y"], feeds)
    assert y.shape == (candidates, 8)


def test_verdicts() -> None:
    targets = [
        Target("a", 1.0, "<= 1.1"),
        Target("b", 14.0, ">= 15"),
        Target("c", None, ">= 1", "x"),
    ]
    assert [t.verdict for t in targets] == [True, False, None]
    assert [line.rsplit("|")[-2].strip() for line in markdown(targets).splitlines()[2:]] == [
        "met",
        "missed",
        "skipped",
    ]


def test_both_loops_count_answers_and_errors(tmp_path: Path) -> None:
    with serving(tmp_path / "candidates.sqlite", "--score-cache-mb", "0") as server:
        closed = asyncio.run(closed_loop(server.address, texts(4, 1), 2))
        opened = asyncio.run(open_loop(server.address, [*texts(3, 1), ""], rate=50.0))
    assert (len(closed.calls), len(opened.calls)) == (4, 3)
    assert dict(opened.errors) == {"INVALID_ARGUMENT": 1}
    assert isinstance(opened, Seen)
    assert opened.summary()["errors"]


def test_the_simulated_queue_is_the_known_one_where_nothing_can_be_joined() -> None:
    """M/D/1 (Pollaczek-Khinchine): mean wait = service * load / (2 (1 - load))."""
    long, one = np.array([490]), np.array([1.0])  # two of them exceed the batcher's rows
    service = Service(start=10.0, row=0.0, pair=0.0, worst=0.0)
    for load in (0.3, 0.7):
        found = latencies(service, 20, long, one, rate=100 * load).mean()
        assert abs(found - (10 + 10 * load / (2 * (1 - load)))) < 1.0
    short = np.array([32])  # joined, so that one forward serves many
    assert latencies(service, 20, short, one, rate=300.0).mean() < 40


def test_the_fit_of_service_times_finds_its_line() -> None:
    rows, lengths = [50, 100, 400, 300], [10, 20, 10, 40]
    ms = [2 + 0.1 * x + 0.003 * x * n for x, n in zip(rows, lengths, strict=True)]
    found = fit(rows, lengths, ms)
    assert np.allclose([found.start, found.row, found.pair, found.worst], [2, 0.1, 0.003, 0])


def test_calls_are_counted_and_joined() -> None:
    calls = Calls([0.0, 1.0, 2.0], [0.1, 1.2, 2.3], ["OK", "OK", "UNAVAILABLE"], 4.0, 0.5)
    np.testing.assert_allclose(calls.answered_ms(), [100, 200])
    assert (calls.per_second(), calls.per_second(after_s=1.0)) == (0.5, 1 / 3)
    assert Calls([3.9], [4.1], ["OK"], 4.0).per_second() == 0  # came after the load's end
    calls.extend(Calls([1.0], [1.5], ["OK"], 4.0, 0.1))
    assert calls.due[-1] == 5.0
    assert calls.codes() == {"OK": 3, "UNAVAILABLE": 1}
    assert calls.summary()["generator_cores"] == pytest.approx(0.3)


def test_a_generator_holds_and_pours(tmp_path: Path) -> None:
    async def both(address: str) -> tuple[Calls, Calls]:
        async with Generator(address, texts(40, 1), timeout_s=20.0) as generator:
            held = await generator.hold(2, 0.5)
            return held, await generator.pour(20.0, 1.0, even=True)

    with serving(tmp_path / "candidates.sqlite", "--score-cache-mb", "0") as server:
        held, poured = asyncio.run(both(server.address))
        assert server.resident_mb() > 10
        assert server.cpu_s() > 0
    assert set(held.code) == set(poured.code) == {"OK"}
    assert len(poured.code) in (18, 19, 20)


def test_overload_and_soak_are_judged() -> None:
    def calls(ms: float, codes: list[str]) -> Calls:
        due = [i / 10 for i in range(len(codes))]
        return Calls(due, [d + ms / 1000 for d in due], codes, 10.0)

    seen = dict.fromkeys(("capacity", "capacity again"), calls(50, ["OK"] * 100))
    seen |= dict.fromkeys(("normal", "recovery"), calls(50, ["OK"] * 50))
    seen["overload"] = calls(900, ["OK"] * 95 + ["RESOURCE_EXHAUSTED"] * 100)
    assert [t.verdict for t in overload.judge(seen, 3.0)] == [True] * 4
    seen["overload"] = calls(900, ["OK"] * 80 + ["UNAVAILABLE"])
    seen["recovery"] = calls(150, ["OK", "RESOURCE_EXHAUSTED"])
    assert [t.verdict for t in overload.judge(seen, 3.0)] == [False] * 4

    assert (soak.turns(2), soak.turns(30)) == (2, 4)
    flat, grown = ([(i / 4, 100 + i * by) for i in range(1, 121)] for by in (0.0, 0.1))
    assert soak.growth(flat) == 0
    assert soak.growth(grown) == pytest.approx(0.107, abs=0.01)
    assert soak.slices(calls(50, ["OK"] * 200)) == [50.0, 50.0]
    halves = {"without swaps": calls(10, ["OK"] * 9), "with swaps": calls(12, ["OK"] * 9)}
    verdicts = [t.verdict for t in soak.judge(halves, flat, soak.Swaps(""))]
    assert verdicts == [True, True, True, False]


def test_fuzzed_requests_can_be_made_again_and_are_of_all_kinds() -> None:
    kinds = set()
    for method in grpc.methods():
        made = [messages.make(method, 7, number) for number in range(40)]
        assert made == [messages.make(method, 7, number) for number in range(40)]
        for raw in made:
            try:
                GetMessageClass(method.input_type).FromString(raw)
                kinds.add("readable")
            except DecodeError:
                kinds.add("unreadable")
    assert kinds == {"readable", "unreadable"}
    names = {messages.method_path(method) for method in grpc.methods()}
    assert "/modelsat.v1.CandidateService/WatchCandidates" in names
    assert len({messages.bad_connection(7, number) for number in range(200)}) > 12


def test_a_short_fuzz_of_a_real_server(tmp_path: Path) -> None:
    with serving(tmp_path / "candidates.sqlite") as server:
        found = grpc.fuzz(server, requests=150, seed=7)
    assert found.failures == []
    assert found.codes.total() == 150


def test_a_backend_that_raises_fails_its_own_requests_alone(tmp_path: Path) -> None:
    case = cases.backend_raises(tmp_path)
    assert case.good, case.seen
