"""The batcher: every request gets its own answer or an error, whatever its neighbours do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpp_ext import score_reference
from engine.api.candidate import Candidate
from engine.api.errors import (
    DeadlineError,
    ModelsatError,
    OverloadedError,
    UnavailableError,
    WaitTooLongError,
)
from engine.bundle.manifest import Calibration
from engine.inference.backend import Readout
from engine.inference.batcher import FORGET_S, SAFETY, WINDOW, Batcher, Limits, Pace
from engine.inference.request_queue import MAX_OVERTAKEN, Queue, Work
from engine.registry.table import Table, make_table
from engine.serving.rpc.listener import Listener
from engine.serving.server import watch_stalls
from tests.support.fake_backend import FakeBackend

WIDTH = 8
READOUT = Readout(np.linspace(-1, 1, WIDTH).astype(np.float32), 1e-5, Calibration(1.5, -0.2))


def table(revision: int, count: int) -> Table:
    random = np.random.default_rng(revision)
    entries = [
        (Candidate(f"c{i:03}", ()), random.standard_normal(WIDTH).astype(np.float32))
        for i in range(count)
    ]
    return make_table(revision, entries, WIDTH)


def expected(first: int, of: Table, rows: np.ndarray) -> np.ndarray:
    hidden = of.embeddings[rows] * np.float32(first)
    return score_reference(hidden[None], READOUT.weight, eps=1e-5, scale=1.5, offset=-0.2)[0]


REQUEST = st.tuples(
    st.integers(1, 30),  # length
    st.integers(1, 9),  # first token
    st.integers(0, 1),  # table
    st.sets(st.integers(0, 6), min_size=1),  # rows
)


@given(st.lists(REQUEST, min_size=1, max_size=25), st.integers(20, 200))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_its_own_answer(
    requests: list[tuple[int, int, int, set[int]]], budget: int
) -> None:
    tables = [table(1, 7), table(2, 7)]
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


ROW_S = 0.01


async def queue_of(requests: list[tuple[int, int, int, set[int]]], deadlines: list[float]) -> Queue:
    tables, queue = [table(1, 7), table(2, 7)], Queue()
    for (n, _, t, rows), deadline in zip(requests, deadlines, strict=False):
        result = asyncio.get_running_loop().create_future()
        chosen = np.array(sorted(rows))
        tokens = np.zeros(n, np.int64)
        queue.add(Work(tokens, tables[t], chosen, deadline, 0.0, result, n + len(chosen)))
    return queue


@given(
    st.lists(REQUEST, max_size=20),
    st.lists(st.floats(0.0, 3.0) | st.just(float("inf")), min_size=20, max_size=20),
    st.integers(1, 120),
)
def test_the_queue_keeps_order_budget_and_deadlines_and_loses_nobody(
    requests: list[tuple[int, int, int, set[int]]], deadlines: list[float], budget: int
) -> None:
    async def scenario() -> None:
        queue = await queue_of(requests, deadlines)
        all_of_them, served, now = list(queue._works), [], 0.0
        while len(queue):
            present = list(queue._works)
            batch = queue.take(budget, now, ROW_S)
            left = [w for w in present if not w.result.done() and w not in batch.works]
            assert left == list(queue._works)
            assert queue.rows == sum(w.size for w in left)
            for work in set(present) - set(left) - set(batch.works):
                assert now + ROW_S * work.size > work.deadline  # dropped: it could not be in time
                assert isinstance(work.result.exception(), DeadlineError)
            if batch.works:
                assert batch.works[0] is next(w for w in present if not w.result.done())
                assert len({id(w.table) for w in batch.works}) == 1
                union = set().union(*(w.rows.tolist() for w in batch.works))
                assert batch.union.tolist() == sorted(union)
                padded = len(batch.works) * (max(len(w.tokens) for w in batch.works) + len(union))
                assert len(batch.works) == 1 or padded <= budget
                now += ROW_S * batch.size
                assert all(now <= w.deadline + 1e-9 for w in batch.works)  # nobody came for nothing
            served += batch.works
        failed = [w for w in all_of_them if w.result.done()]
        assert sorted(map(id, served + failed)) == sorted(map(id, all_of_them))

    asyncio.run(scenario())


@given(st.lists(st.sampled_from([1, 2, 9, 30]), min_size=1, max_size=40), st.integers(10, 70))
@settings(max_examples=30)
def test_nobody_is_overtaken_without_bound(lengths: list[int], budget: int) -> None:
    """Whatever keeps coming behind: here always what joins the oldest best."""

    async def scenario() -> None:
        queue = await queue_of([(n, 1, 0, {0}) for n in lengths], [float("inf")] * len(lengths))
        later: Counter[Work] = Counter()
        of, endless = next(iter(queue._works)).table, 400
        while len(queue):
            batch = queue.take(budget, 0.0, ROW_S)
            order = list(queue._works)
            for work in order:
                later[work] += sum(w.arrived > work.arrived for w in batch.works)
            assert all(n <= MAX_OVERTAKEN + budget for n in later.values())
            for _ in range(min(endless, len(batch.works))):
                endless -= 1
                result = asyncio.get_running_loop().create_future()
                tokens = batch.works[0].tokens
                args = (tokens, of, np.array([0]), float("inf"), 401.0 - endless, result)
                queue.add(Work(*args, len(tokens) + 1))

    asyncio.run(scenario())


@given(st.lists(st.floats(1e-4, 1e-2), min_size=WINDOW, max_size=40), st.integers(0, 7))
def test_the_pace_is_moved_by_no_stall_and_forgets(rates: list[float], stalls: int) -> None:
    pace = Pace()
    for rate in rates:
        pace.measure(100, 100 * rate, 1.0)
    for _ in range(min(stalls, WINDOW // 2)):
        pace.measure(100, 1000.0, 1.0)
    assert min(rates[-WINDOW:]) * 0.999 <= pace.row_s <= max(rates[-WINDOW:]) * 1.001
    pace.forget(1.0 + FORGET_S / 2)
    assert pace.row_s > 0
    pace.forget(1.0 + 2 * FORGET_S)
    assert pace.row_s == 0


@given(
    st.lists(REQUEST, max_size=20),
    st.none() | st.tuples(st.floats(0, 2), st.integers(1, 200)),
    st.integers(1, 300),
    st.floats(-0.5, 5.0),
)
def test_admitted_is_what_is_expected_in_time(
    requests: list[tuple[int, int, int, set[int]]],
    running: tuple[float, int] | None,
    size: int,
    left: float,
) -> None:
    async def scenario() -> None:
        batcher, now = Batcher(FakeBackend(), READOUT, Limits(waiting=15)), 100.0
        batcher._pace.measure(100, 100 * ROW_S, now)
        batcher._queue = await queue_of(requests, [float("inf")] * len(requests))
        if running is not None:
            batcher._running = now - running[0], running[1]
        needed = SAFETY * (batcher._ahead_s(now) + ROW_S * size)
        full, hopeless = len(requests) >= 15, left <= 0 or SAFETY * ROW_S * size > left
        if not full and needed <= left:
            batcher.check_room(size, now + left, now)
        else:
            with pytest.raises((OverloadedError, DeadlineError)) as refused:
                batcher.check_room(size, now + left, now)
            kind = DeadlineError if hopeless else WaitTooLongError
            assert type(refused.value) is (OverloadedError if full else kind)
            retry_s = getattr(refused.value, "retry_after_s", 1.0)
            assert retry_s > 0
            assert full or hopeless or left + retry_s >= needed - 1e-6  # by then there is room
        if len(requests) < 15:
            batcher.check_room(
                size, float("inf"), now
            )  # without a deadline: as long as there is room

    asyncio.run(scenario())


class Flaky(FakeBackend):
    """Fails the forwards whose number is in `bad`; counts how often each first token came."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__(delay_s=0.001)
        self.bad = bad
        self.seen: Counter[int] = Counter()

    def hidden(self, tokens: Sequence[np.ndarray], embeddings: np.ndarray) -> np.ndarray:
        self.seen.update(int(t[0]) for t in tokens)
        rows = super().hidden(tokens, embeddings)
        if len(self.batches) in self.bad:
            raise (RuntimeError, SystemExit, StopIteration)[len(self.batches) % 3]
        return rows


ARRIVAL = st.tuples(
    st.integers(0, 3),  # milliseconds since the one before
    st.integers(1, 30),  # length
    st.none() | st.floats(0.0, 0.02),  # seconds of deadline
    st.none() | st.floats(0.0, 0.005),  # seconds until it is cancelled
)


@given(st.lists(ARRIVAL, min_size=1, max_size=30), st.sets(st.integers(1, 10), max_size=4))
@settings(max_examples=40)
def test_every_request_ends_once_whatever_happens(
    arrivals: list[tuple[int, int, float | None, float | None]], bad: set[int]
) -> None:
    backend, of, rows = Flaky(bad), table(1, 3), np.arange(3)

    async def scenario() -> None:
        batcher, tasks = Batcher(backend, READOUT, Limits(rows=60, waiting=12)), []
        batcher.start()
        for i, (gap, length, within, cancelled) in enumerate(arrivals):
            await asyncio.sleep(gap / 1000)
            deadline = float("inf") if within is None else time.monotonic() + within
            tokens = np.full(length, i + 1, dtype=np.int64)
            tasks.append(asyncio.create_task(batcher.submit(tokens, of, rows, deadline)))
            if cancelled is not None:
                asyncio.get_running_loop().call_later(cancelled, tasks[-1].cancel)
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        for i, (end, (_, _, within, cancelled)) in enumerate(zip(ends, arrivals, strict=True)):
            if isinstance(end, asyncio.CancelledError):
                assert cancelled is not None
            elif isinstance(end, BaseException):
                assert isinstance(end, ModelsatError)
                assert within is not None or not isinstance(end, DeadlineError | WaitTooLongError)
                assert bad or not isinstance(end, UnavailableError)
            else:
                np.testing.assert_allclose(end.p, expected(i + 1, of, rows), atol=1e-5)
        assert (len(batcher._queue), batcher._queue.rows) == (0, 0)
        await batcher.stop()

    asyncio.run(scenario())
    assert all(n == 1 for n in backend.seen.values())


async def test_cancelled_and_expired_requests_are_not_forwarded() -> None:
    backend, of = FakeBackend(), table(1, 3)
    backend.gate.clear()
    batcher = Batcher(backend, READOUT)
    batcher.start()
    rows, tokens = np.arange(3), np.ones(4, np.int64)
    first = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    gone = asyncio.create_task(batcher.submit(tokens, of, rows))
    late = asyncio.create_task(batcher.submit(tokens, of, rows, time.monotonic() + 0.3))
    await asyncio.sleep(0.4)
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
    assert batcher.crowded() is None
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(batcher.submit(tokens, of, rows)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as refused:
        await batcher.submit(tokens, of, rows)
    assert refused.value.retry_after_s > 0
    busy = batcher.crowded()
    assert busy is not None
    assert not busy.is_set()
    backend.gate.set()
    assert busy.wait(5)
    assert len(await asyncio.gather(running, *waiting)) == 3
    assert (await batcher.submit(tokens, of, rows)).queue_s >= 0
    await batcher.stop()


@pytest.mark.parametrize("fault", [RuntimeError("the text of an instruction"), SystemExit(1)])
async def test_a_failing_forward_fails_its_requests_and_no_others(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, READOUT)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    backend.error = fault
    for _ in range(3):
        with pytest.raises(UnavailableError) as failed:
            await batcher.submit(tokens, of, rows)
    assert "instruction" not in str(failed.value) + caplog.text
    assert len(caplog.records) == 1
    backend.error = None
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()
    with pytest.raises(UnavailableError):
        await batcher.submit(tokens, of, rows)


async def test_a_stage_that_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, READOUT)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    await batcher.submit(tokens, of, rows)
    await batcher._worker.stop()  # the thread ends
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    backend.gate.clear()
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0)
    assert batcher._task is not None
    batcher._task.cancel()  # the task ends, and fails what it had and what waits
    for failed in (running, waiting):
        with pytest.raises(UnavailableError):
            await failed
    backend.gate.set()
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    queue, batcher._queue.take = batcher._queue, None  # type: ignore[assignment,method-assign]
    with pytest.raises(UnavailableError):  # a fault in the batcher itself
        await batcher.submit(tokens, of, rows)
    del queue.take
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()


async def test_a_forward_that_hangs_costs_no_more_than_the_deadlines() -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, READOUT)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    await batcher.submit(tokens, of, rows)
    assert batcher.stalled_s == 0
    backend.gate.clear()
    soon = time.monotonic() + 0.1
    ends = await asyncio.gather(
        *(batcher.submit(tokens, of, rows, soon) for _ in range(3)), return_exceptions=True
    )
    assert [type(end) for end in ends] == [DeadlineError] * 3
    assert len(batcher._queue) == 0
    assert batcher.stalled_s >= 0.05
    with pytest.raises(WaitTooLongError):  # late already, so expected to stay late as long again
        await batcher.submit(tokens, of, rows, time.monotonic() + 0.05)
    backend.gate.set()
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()


class Told:
    """Stands where a server's listener would: keeps what it is told."""

    def __init__(self) -> None:
        self.alive: list[bool] = []

    async def live(self, alive: bool) -> None:
        self.alive.append(alive)


async def test_a_forward_that_hangs_shows_in_liveness_until_it_goes_on() -> None:
    backend, told = FakeBackend(), Told()
    backend.gate.clear()
    batcher = Batcher(backend, READOUT)
    batcher.start()
    watch = asyncio.create_task(watch_stalls(batcher, [cast(Listener, told)], limit_s=0.05))
    job = asyncio.create_task(batcher.submit(np.ones(3, np.int64), table(1, 7), np.arange(7)))
    async with asyncio.timeout(10):
        while len(told.alive) < 1:
            await asyncio.sleep(0.01)
        backend.gate.set()
        await job
        while len(told.alive) < 2:
            await asyncio.sleep(0.01)
    assert told.alive == [False, True]
    watch.cancel()
    await batcher.stop()


async def test_forwards_that_all_fail_show_in_liveness_until_one_succeeds() -> None:
    backend, told = FakeBackend(), Told()
    batcher = Batcher(backend, READOUT)
    batcher.start()
    watch = asyncio.create_task(watch_stalls(batcher, [cast(Listener, told)], limit_s=0.2))

    async def ask() -> None:
        await batcher.submit(np.ones(3, np.int64), table(1, 7), np.arange(7))

    backend.error = RuntimeError()
    with pytest.raises(UnavailableError):
        await ask()
    await asyncio.sleep(0.4)
    assert told.alive == [], "one failure and silence are no cause for a restart"
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            await ask()
        while len(told.alive) < 1:
            await asyncio.sleep(0.01)
        backend.error = None
        await ask()
        while len(told.alive) < 2:
            await asyncio.sleep(0.01)
    assert told.alive == [False, True]
    watch.cancel()
    await batcher.stop()
