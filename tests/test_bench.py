"""The arithmetic of the benchmarks, and that both run against a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from bench.floor import Shape, products, session
from bench.latency import texts
from bench.load import Seen, closed_loop, open_loop
from bench.process import serving
from bench.report import Target, markdown

SHAPE = Shape(layers=3, width=8, keys=4, inner=12)


def test_the_products_are_the_operations_that_are_counted(tmp_path: Path) -> None:
    """Counted once more by hand: 2 x rows x inputs x outputs of each matrix."""
    rows, candidates = 10, 2
    full = rows * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 8 * 12 + 8 * 12 + 12 * 8)
    last = rows * (8 * 4 + 8 * 4) + candidates * (8 * 8 + 8 * 8 + 3 * 8 * 12)
    assert SHAPE.operations(rows, candidates) == 2 * (2 * full + last)
    products(SHAPE, rows, candidates, tmp_path / "products.onnx")
    run = session(tmp_path / "products.onnx", threads=1)
    (y,) = run.run(["y"], {"x": np.ones((rows, 8), dtype=np.float32)})
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
