"""The arithmetic of benchmarks and reliability runs, and short runs against a real server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bench import memory, targets
from bench.baselines import KERNEL, LLAMA_CPP, NUMPY, REFERENCE
from bench.capacity import Service, fit, latencies
from bench.latency import texts
from bench.load_generator import Generator, LoadResult, RouteTimings, closed_loop, open_loop
from bench.peers import openvino
from bench.peers.process import MissingError, running
from bench.report import Target, markdown
from bench.roofline import Shape, products, session
from tests.reliability import overload, soak
from tests.reliability.fuzz import grpc, messages
from tools.processes import serving

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=3, width=8, keys=4, inner=12, head=2)


def test_roofline_graph_has_the_operations_that_are_counted(tmp_path: Path) -> None:
    """Count again by hand: 2 x rows x inputs x outputs of each matrix."""
    rows, candidates, seen = 10, 2, 9
    attention = 2 * 8 * seen  # scores and their products with the values, over all heads
    linear = SHAPE.linear(rows, candidates)
    full = rows * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 8 * 12 + 8 * 12 + 12 * 8 + attention)
    last = rows * (8 * 4 + 8 * 4) + candidates * (8 * 8 + 8 * 8 + 3 * 8 * 12 + attention)
    assert SHAPE.operations(rows, candidates, seen) == 2 * (2 * full + last)
    without_attention = 2 * (2 * (full - rows * attention) + last - candidates * attention)
    assert sum(2 * m * into * out for m, into, out in linear) == without_attention
    products(SHAPE, rows, candidates, seen, tmp_path / "products.onnx")
    run = session(tmp_path / "products.onnx", threads=1)
    feeds = {i.name: np.ones(i.shape, dtype=np.float32) for i in run.get_inputs()}
    (y,) = run.run(["y"], feeds)
    assert y.shape == (candidates, 8)


def test_targets_are_met_missed_or_skipped() -> None:
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


def test_every_target_is_met_missed_or_left_out_for_a_reason() -> None:
    """On a machine with AMX and OpenVINO, and on one with neither them nor torch."""
    one = {"p50_ms": 6.0, "phases_ms": {"inference": 5.0, "scoring": 0.0, "total": 5.5}}
    live = {
        "one": one,
        "eight": {"per_second": 200.0},
        "eight_by_onnxruntime": {"per_second": 60.0},
    }
    live |= {"resident_mb": 300.0, "ready_s": 1.0}
    int8 = dict.fromkeys(("int8, 1 candidate", "int8, 100 candidates"), 12.0)
    ms = int8 | {"fp32": 24.0, "int8": 15.0, "products alone, fp32": 20.0, KERNEL: 1.0, NUMPY: 9.0}
    skipped = dict.fromkeys((REFERENCE.format(6), REFERENCE.format(30), LLAMA_CPP), "no torch")
    served = targets.Measured(ms, {"int8": 30.0}, live, {}, 40.0, 6, skipped=skipped)
    found = {t.name: t for t in targets.targets_of(served)}
    assert all(
        t.verdict is not None or t.reason for t in found.values() if "reference" not in t.name
    )
    assert found["8 connections: throughput over that of cpu-onnx"].bound == ">= 1.5"

    amx = {targets.AMX: 3.0, "OpenVINO, bf16": 9.6, "OpenVINO, int8": 9.0}
    busy = {"int8": 30.0, targets.AMX: 40.0}
    agreement = {"amx-int8: p alone or in a batch": 0.0, "amx-bf16: p from fp32": 0.004}
    whole = targets.Measured(ms | amx, busy, live, agreement, 40.0, 6, wall_s=61.0)
    found = {t.name: t for t in targets.targets_of(whole)}
    assert found[f"{targets.AMX}: speedup over int8"].value == 5.0
    assert found[f"{targets.AMX}: speedup over OpenVINO's best"].value == 3.0
    assert found[f"{targets.AMX}, with a busy neighbor: speedup over int8"].verdict is False
    assert found[f"{targets.AMX}: p alone or in a batch, largest difference"].verdict is True
    assert found[f"{targets.BF16}: largest difference of p from fp32"].verdict is False
    assert found["8 connections: throughput over that of cpu-onnx"].bound == ">= 2.5"
    assert found["wall time of --quick, s"].verdict is False


def test_peer_that_is_missing_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "PYTHON", tmp_path / "none")
    with pytest.raises(MissingError, match="make openvino"):
        openvino.running(tmp_path, tmp_path, "bf16", 1).__enter__()
    echo = "print('ready', flush=True); [print(1.5, flush=True) for _ in sys.stdin]"
    with running("echo", [sys.executable, "-c", f"import sys; {echo}"]) as peer:
        assert [peer(), peer()] == [1.5, 1.5]
    words = "import sys; sys.exit('out of memory')"
    with (
        pytest.raises(MissingError, match="gone: out of memory"),
        running("gone", [sys.executable, "-c", words]),
    ):
        pass


def test_closed_and_open_loop_count_answers_and_errors(tmp_path: Path) -> None:
    with serving(tmp_path / "candidates.sqlite", "--score-cache-mb", "0") as server:
        closed = asyncio.run(closed_loop(server.address, texts(4, 1), 2))
        opened = asyncio.run(open_loop(server.address, [*texts(3, 1), ""], rate=50.0))
    assert (len(closed.calls), len(opened.calls)) == (4, 3)
    assert dict(opened.errors) == {"INVALID_ARGUMENT": 1}
    assert isinstance(opened, RouteTimings)
    assert opened.summary()["errors"]


def test_simulated_queue_equals_m_d_1_without_batching() -> None:
    """M/D/1 (Pollaczek-Khinchine): mean wait = service * load / (2 (1 - load))."""
    long, one = np.array([490]), np.array([1.0])  # two of them exceed the batcher's row limit
    service = Service(start=10.0, row=0.0, pair=0.0, worst=0.0)
    for load in (0.3, 0.7):
        mean = latencies(service, 20, long, one, rate=100 * load).mean()
        assert abs(mean - (10 + 10 * load / (2 * (1 - load)))) < 1.0
    short = np.array([32])  # batched, so that one forward pass serves many
    assert latencies(service, 20, short, one, rate=300.0).mean() < 40


def test_fit_of_service_times_recovers_its_parameters() -> None:
    rows, lengths = [50, 100, 400, 300], [10, 20, 10, 40]
    ms = [2 + 0.1 * x + 0.003 * x * n for x, n in zip(rows, lengths, strict=True)]
    service = fit(rows, lengths, ms)
    assert np.allclose(
        [service.start, service.row, service.pair, service.worst], [2, 0.1, 0.003, 0]
    )


def test_load_results_count_and_concatenate() -> None:
    calls = LoadResult([0.0, 1.0, 2.0], [0.1, 1.2, 2.3], ["OK", "OK", "UNAVAILABLE"], 4.0, 0.5)
    np.testing.assert_allclose(calls.answered_ms(), [100, 200])
    assert (calls.per_second(), calls.per_second(after_s=1.0)) == (0.5, 1 / 3)
    assert (
        LoadResult([3.9], [4.1], ["OK"], 4.0).per_second() == 0
    )  # answered after the end of the load
    calls.extend(LoadResult([1.0], [1.5], ["OK"], 4.0, 0.1))
    assert calls.due[-1] == 5.0
    assert calls.codes() == {"OK": 3, "UNAVAILABLE": 1}
    assert calls.summary()["generator_cores"] == pytest.approx(0.3)


def test_generator_sends_closed_and_open_loop(tmp_path: Path) -> None:
    async def both(address: str) -> tuple[LoadResult, LoadResult]:
        async with Generator(address, texts(40, 1), timeout_s=20.0) as generator:
            closed = await generator.closed_loop(2, 0.5)
            return closed, await generator.open_loop(20.0, 1.0, even=True)

    with serving(tmp_path / "candidates.sqlite", "--score-cache-mb", "0") as server:
        closed, opened = asyncio.run(both(server.address))
        assert server.resident_mb() > 10
        assert server.cpu_s() > 0
    assert set(closed.code) == set(opened.code) == {"OK"}
    assert len(opened.code) in (18, 19, 20)


def test_targets_of_overload_and_soak() -> None:
    def calls(ms: float, codes: list[str]) -> LoadResult:
        due = [i / 10 for i in range(len(codes))]
        return LoadResult(due, [d + ms / 1000 for d in due], codes, 10.0)

    phases = dict.fromkeys(("capacity", "capacity again"), calls(50, ["OK"] * 100))
    phases |= dict.fromkeys(("normal", "recovery"), calls(50, ["OK"] * 50))
    phases["overload"] = calls(900, ["OK"] * 95 + ["RESOURCE_EXHAUSTED"] * 100)
    assert [t.verdict for t in overload.targets_of(phases, 3.0)] == [True] * 4
    phases["overload"] = calls(900, ["OK"] * 80 + ["UNAVAILABLE"])
    phases["recovery"] = calls(150, ["OK", "RESOURCE_EXHAUSTED"])
    assert [t.verdict for t in overload.targets_of(phases, 3.0)] == [False] * 4

    assert (soak.cycle_count(2), soak.cycle_count(30)) == (2, 4)
    flat, grown = ([(i / 4, 100 + i * by) for i in range(1, 121)] for by in (0.0, 0.1))
    assert soak.growth(flat) == 0
    assert soak.growth(grown) == pytest.approx(0.107, abs=0.01)
    assert soak.p99_by_interval(calls(50, ["OK"] * 200)) == [50.0, 50.0]
    changes = soak.CandidateChanges("")
    halves = {soak.WITHOUT: calls(10, ["OK"] * 9), soak.WITH: calls(12, ["OK"] * 9)}
    verdicts = [t.verdict for t in soak.targets_of(halves, flat, changes)]
    assert verdicts == [True, True, True, False]


def test_what_memory_adds_is_a_difference_of_medians_with_an_interval() -> None:
    random = np.random.default_rng(0)
    base = random.normal(8.0, 0.5, 400)
    difference, low, high = memory.added(base + random.normal(0.4, 0.1, 400), base)
    assert low < difference < high
    assert difference == pytest.approx(0.4, abs=0.1)
    results = {0: {"added_p50_ms": 0.0}, 10_000: {"added_p50_ms": 0.4}}
    targets = memory.targets_of({**results, 100_000: {"added_p50_ms": 1.6}})
    assert [target.verdict for target in targets] == [True, False]
    assert [target.verdict for target in memory.targets_of(results)] == [True]


def test_fuzzed_requests_are_reproducible_and_of_all_kinds() -> None:
    kinds = set()
    for method in grpc.methods():
        first = [messages.make(method, 7, number) for number in range(40)]
        assert first == [messages.make(method, 7, number) for number in range(40)]
        for raw in first:
            try:
                GetMessageClass(method.input_type).FromString(raw)
                kinds.add("readable")
            except DecodeError:
                kinds.add("unreadable")
    assert kinds == {"readable", "unreadable"}
    names = {messages.method_path(method) for method in grpc.methods()}
    assert "/modelsat.v1.CandidateService/WatchCandidates" in names
    assert len({messages.bad_connection(7, number) for number in range(200)}) > 12


def test_short_fuzz_of_a_real_server(tmp_path: Path) -> None:
    with serving(tmp_path / "candidates.sqlite") as server:
        result = grpc.fuzz(server, requests=150, seed=7)
    assert result.failures == []
    assert result.codes.total() == 150
