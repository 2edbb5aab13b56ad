"""The batcher: every request gets its own answer or an error, whatever its neighbours do."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpp_ext import score_reference
from engine.contract.bundle import Calibration
from engine.contract.candidate import Candidate
from engine.contract.errors import DeadlineError, OverloadedError, UnavailableError
from engine.registry.table import Table, make_table
from engine.scoring.backend import Readout
from engine.scoring.batcher import Batcher, Limits, _Work, take
from tests.fakes import FakeBackend

WIDTH = 8
READOUT = Readout(np.linspace(-1, 1, WIDTH).astype(np.float32), 1e-5, Calibration(1.5, -0.2))


def table(revision: int, count: int, variants: int = 1) -> Table:
    random = np.random.default_rng(revision)
    shape = (variants, WIDTH)
    entries = [
        (Candidate(f"c{i:03}", ()), random.standard_normal(shape).astype(np.float32))
        for i in range(count)
    ]
    return make_table(revision, entries, shape)


def expected(first: int, of: Table, rows: np.ndarray) -> np.ndarray:
    hidden = of.embeddings[rows].reshape(-1, WIDTH) * np.float32(first)
    return score_reference(
        hidden[None], READOUT.weight, eps=1e-5, scale=1.5, offset=-0.2,
        variants=of.embeddings.shape[1],
    )[0]  # fmt: skip


REQUEST = st.tuples(
    st.integers(1, 30),  # length
    st.integers(1, 9),  # first token
    st.integers(0, 1),  # table
    st.sets(st.integers(0, 6), min_size=1),  # rows
)


@given(st.lists(REQUEST, min_size=1, max_size=25), st.integers(20, 200), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_its_own_answer(
    requests: list[tuple[int, int, int, set[int]]], budget: int, variants: int
) -> None:
    tables = [table(1, 7, variants), table(2, 7, variants)]
    backend = FakeBackend()

    async def scenario() -> None:
        batcher = Batcher(backend, READOUT, Limits(rows=budget))
        batcher.start()
        jobs = []
        for length, first, which, rows in requests:
            tokens = np.full(length, first, dtype=np.int64)
            jobs.append(batcher.submit(tokens, tables[which], np.array(sorted(rows))))
        answers = await asyncio.gather(*jobs)
        await batcher.stop()
        for (_, first, which, rows), answer in zip(requests, answers, strict=True):
            want = expected(first, tables[which], np.array(sorted(rows)))
            np.testing.assert_allclose(answer.p, want, atol=1e-5)

    asyncio.run(scenario())
    assert sum(backend.batches) == len(requests)


@given(st.lists(REQUEST, max_size=20), st.integers(1, 120))
@settings(deadline=None)
def test_take_keeps_order_and_budget_and_loses_nobody(
    requests: list[tuple[int, int, int, set[int]]], budget: int
) -> None:
    async def scenario() -> None:
        tables = [table(1, 7), table(2, 7)]
        loop = asyncio.get_running_loop()
        works = [
            _Work(np.zeros(n, np.int64), tables[t], np.array(sorted(rows)), np.inf, 0.0,
                  loop.create_future())
            for n, _, t, rows in requests
        ]  # fmt: skip
        waiting, order = deque(works), []
        while waiting:
            oldest = waiting[0]
            batch = take(waiting, budget, now=1.0)
            assert batch[0] is oldest
            assert len({id(w.table) for w in batch}) == 1
            union = set().union(*(w.rows.tolist() for w in batch))
            size = len(batch) * (max(len(w.tokens) for w in batch) + len(union))
            assert len(batch) == 1 or size <= budget
            order += batch
        assert sorted(map(id, order)) == sorted(map(id, works))

    asyncio.run(scenario())


async def test_cancelled_and_expired_requests_are_not_forwarded() -> None:
    backend, of = FakeBackend(), table(1, 3)
    backend.gate.clear()
    batcher = Batcher(backend, READOUT)
    batcher.start()
    rows, tokens = np.arange(3), np.ones(4, np.int64)
    first = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    gone = asyncio.create_task(batcher.submit(tokens, of, rows))
    late = asyncio.create_task(batcher.submit(tokens, of, rows, time.monotonic() + 0.01))
    await asyncio.sleep(0.05)
    gone.cancel()
    backend.gate.set()
    assert (await first).p.shape == (3,)
    with pytest.raises(DeadlineError):
        await late
    assert (await batcher.submit(tokens, of, rows)).p.shape == (3,)
    assert backend.batches == [1, 1]
    await batcher.stop()


async def test_a_full_queue_refuses_and_recovers() -> None:
    backend, of = FakeBackend(), table(1, 1)
    backend.gate.clear()
    batcher = Batcher(backend, READOUT, Limits(waiting=2))
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(batcher.submit(tokens, of, rows)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as refused:
        await batcher.submit(tokens, of, rows)
    assert refused.value.retry_after_s > 0
    backend.gate.set()
    assert len(await asyncio.gather(running, *waiting)) == 3
    assert (await batcher.submit(tokens, of, rows)).queue_s >= 0
    await batcher.stop()


async def test_a_failing_forward_fails_its_requests_and_no_others() -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, READOUT)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    backend.error = RuntimeError("the text of an instruction")
    with pytest.raises(UnavailableError, match="RuntimeError") as failed:
        await batcher.submit(tokens, of, rows)
    assert "instruction" not in str(failed.value)
    backend.error = None
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()
    with pytest.raises(UnavailableError):
        await batcher.submit(tokens, of, rows)
