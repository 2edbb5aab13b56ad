"""The arithmetic of the benchmarks, and that both run against a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from bench.capacity import Service, fit, latencies
from bench.floor import Shape, products, session
from bench.latency import texts
from bench.load import Seen, closed_loop, open_loop
from bench.process import serving
from bench.report import Target, markdown

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
    with serving(tmp_path / "candidates.sqlite", "--cache-mb", "0") as server:
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
