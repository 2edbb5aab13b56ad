"""Test that the batcher gives every request its own result or error, whatever its neighbors do."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
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
from engine.api.request_context import SEVERAL
from engine.bundle.manifest import Calibration
from engine.inference.backend import ScoringHead
from engine.inference.batcher import (
    EXPIRE_S,
    SAFETY,
    WINDOW,
    Batcher,
    BatchLimits,
    ScoreResult,
    ThroughputEstimator,
)
from engine.inference.request_queue import MAX_BYPASSED, PendingRequest, RequestQueue
from engine.registry.table import Table, make_table
from engine.serving.rpc.listener import Listener
from engine.serving.server import watch_stalls
from tests.support.fake_backend import FakeBackend

WIDTH = 8
HEAD = ScoringHead(np.linspace(-1, 1, WIDTH).astype(np.float32), 1e-5, Calibration(1.5, -0.2))


def table(revision: int, count: int) -> Table:
    random = np.random.default_rng(revision)
    entries = [
        (Candidate(f"c{i:03}", ()), random.standard_normal(WIDTH).astype(np.float32))
        for i in range(count)
    ]
    return make_table(revision, entries, WIDTH)


def expected(first: int, of: Table, rows: np.ndarray) -> np.ndarray:
    hidden = of.embeddings[rows] * np.float32(first)
    return score_reference(hidden[None], HEAD.weight, eps=1e-5, scale=1.5, offset=-0.2)[0]


REQUEST = st.tuples(
    st.integers(1, 30),  # length
    st.integers(1, 9),  # first token
    st.integers(0, 1),  # table
    st.sets(st.integers(0, 6), min_size=1),  # rows
)


@given(st.lists(REQUEST, min_size=1, max_size=25), st.integers(20, 200))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_its_own_probabilities_and_embedding(
    requests: list[tuple[int, int, int, set[int]]], budget: int
) -> None:
    tables = [table(1, 7), table(2, 7)]
    backend = FakeBackend()

    async def scenario() -> None:
        batcher = Batcher(backend, HEAD, BatchLimits(max_rows=budget))
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
            assert answer.embedding is not None
            np.testing.assert_array_equal(answer.embedding, np.full(WIDTH, first, np.float32))

    asyncio.run(scenario())
    assert sum(backend.batches) == len(requests)


SECONDS_PER_ROW = 0.01


async def queue_of(
    requests: list[tuple[int, int, int, set[int]]], deadlines: list[float]
) -> RequestQueue:
    tables, queue = [table(1, 7), table(2, 7)], RequestQueue()
    for (n, _, t, rows), deadline in zip(requests, deadlines, strict=False):
        result = asyncio.get_running_loop().create_future()
        chosen = np.array(sorted(rows))
        tokens = np.zeros(n, np.int64)
        queue.add(PendingRequest(tokens, tables[t], chosen, deadline, 0.0, result, n + len(chosen)))
    return queue


@pytest.mark.parametrize(("padded", "together"), [(True, [300]), (False, [300, 20, 90])])
async def test_lengths_share_a_pass_unless_prompts_are_padded(
    padded: bool, together: list[int]
) -> None:
    queue, shared = RequestQueue(padded=padded), table(1, 7)
    for n in (300, 20, 90, 60):
        result = asyncio.get_running_loop().create_future()
        tokens, rows = np.zeros(n, np.int64), np.arange(7)
        queue.add(PendingRequest(tokens, shared, rows, float("inf"), 0.0, result, n + 7))
    batch = queue.next_batch(300 + 20 + 90 + 3 * 7, 0.0, 0.0)
    assert [len(request.tokens) for request in batch.requests] == together


@given(
    st.lists(REQUEST, max_size=20),
    st.lists(st.floats(0.0, 3.0) | st.just(float("inf")), min_size=20, max_size=20),
    st.integers(1, 120),
)
def test_queue_respects_order_budget_and_deadlines_and_loses_no_request(
    requests: list[tuple[int, int, int, set[int]]], deadlines: list[float], budget: int
) -> None:
    async def scenario() -> None:
        queue = await queue_of(requests, deadlines)
        all_of_them, served, now = list(queue._requests), [], 0.0
        while len(queue):
            present = list(queue._requests)
            batch = queue.next_batch(budget, now, SECONDS_PER_ROW)
            left = [w for w in present if not w.result.done() and w not in batch.requests]
            assert left == list(queue._requests)
            assert queue.size == sum(w.size for w in left)
            for work in set(present) - set(left) - set(batch.requests):
                assert (
                    now + SECONDS_PER_ROW * work.size > work.deadline
                )  # dropped: it would have been late
                assert isinstance(work.result.exception(), DeadlineError)
            if batch.requests:
                assert batch.requests[0] is next(w for w in present if not w.result.done())
                assert len({id(w.table) for w in batch.requests}) == 1
                union = set().union(*(w.rows.tolist() for w in batch.requests))
                assert batch.row_union.tolist() == sorted(union)
                padded = len(batch.requests) * (
                    max(len(w.tokens) for w in batch.requests) + len(union)
                )
                assert len(batch.requests) == 1 or padded <= budget
                now += SECONDS_PER_ROW * batch.size
                assert all(now <= w.deadline + 1e-9 for w in batch.requests)  # none is late
            served += batch.requests
        failed = [w for w in all_of_them if w.result.done()]
        assert sorted(map(id, served + failed)) == sorted(map(id, all_of_them))

    asyncio.run(scenario())


@given(st.lists(st.sampled_from([1, 2, 9, 30]), min_size=1, max_size=40), st.integers(10, 70))
@settings(max_examples=30)
def test_no_request_is_bypassed_without_bound(lengths: list[int], budget: int) -> None:
    """Even if the queue is refilled with what fits best with the oldest request."""

    async def scenario() -> None:
        queue = await queue_of([(n, 1, 0, {0}) for n in lengths], [float("inf")] * len(lengths))
        later: Counter[PendingRequest] = Counter()
        of, endless = next(iter(queue._requests)).table, 400
        while len(queue):
            batch = queue.next_batch(budget, 0.0, SECONDS_PER_ROW)
            order = list(queue._requests)
            for work in order:
                later[work] += sum(w.arrived > work.arrived for w in batch.requests)
            assert all(n <= MAX_BYPASSED + budget for n in later.values())
            for _ in range(min(endless, len(batch.requests))):
                endless -= 1
                result = asyncio.get_running_loop().create_future()
                tokens = batch.requests[0].tokens
                args = (tokens, of, np.array([0]), float("inf"), 401.0 - endless, result)
                queue.add(PendingRequest(*args, len(tokens) + 1))

    asyncio.run(scenario())


@given(st.lists(st.floats(1e-4, 1e-2), min_size=WINDOW, max_size=40), st.integers(0, 7))
def test_throughput_estimate_ignores_stalls_and_expires(rates: list[float], stalls: int) -> None:
    throughput = ThroughputEstimator()
    for rate in rates:
        throughput.record(100, 100 * rate, 1.0)
    for _ in range(min(stalls, WINDOW // 2)):
        throughput.record(100, 1000.0, 1.0)
    assert (
        min(rates[-WINDOW:]) * 0.999 <= throughput.seconds_per_row <= max(rates[-WINDOW:]) * 1.001
    )
    throughput.expire(1.0 + EXPIRE_S / 2)
    assert throughput.seconds_per_row > 0
    throughput.expire(1.0 + 2 * EXPIRE_S)
    assert throughput.seconds_per_row == 0


@given(
    st.lists(REQUEST, max_size=20),
    st.none() | st.tuples(st.floats(0, 2), st.integers(1, 200)),
    st.integers(1, 300),
    st.floats(-0.5, 5.0),
)
def test_admission_accepts_exactly_what_is_expected_in_time(
    requests: list[tuple[int, int, int, set[int]]],
    running: tuple[float, int] | None,
    size: int,
    left: float,
) -> None:
    async def scenario() -> None:
        batcher, now = Batcher(FakeBackend(), HEAD, BatchLimits(max_queue_size=15)), 100.0
        batcher._throughput.record(100, 100 * SECONDS_PER_ROW, now)
        batcher._queue = await queue_of(requests, [float("inf")] * len(requests))
        if running is not None:
            batcher._running = now - running[0], running[1]
        needed = SAFETY * (batcher._backlog_s(now) + SECONDS_PER_ROW * size)
        full, hopeless = len(requests) >= 15, left <= 0 or SAFETY * SECONDS_PER_ROW * size > left
        if not full and needed <= left:
            batcher.check_admission(size, now + left, now)
        else:
            with pytest.raises((OverloadedError, DeadlineError)) as refused:
                batcher.check_admission(size, now + left, now)
            kind = DeadlineError if hopeless else WaitTooLongError
            assert type(refused.value) is (OverloadedError if full else kind)
            retry_s = getattr(refused.value, "retry_after_s", 1.0)
            assert retry_s > 0
            assert (
                full or hopeless or left + retry_s >= needed - 1e-6
            )  # by then it would be admitted
        if len(requests) < 15:
            batcher.check_admission(
                size, float("inf"), now
            )  # without a deadline, only the queue's size counts

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
def test_every_request_ends_once_despite_failures_and_cancellations(
    arrivals: list[tuple[int, int, float | None, float | None]], bad: set[int]
) -> None:
    backend, of, rows = Flaky(bad), table(1, 3), np.arange(3)

    async def scenario() -> None:
        batcher, tasks = Batcher(backend, HEAD, BatchLimits(max_rows=60, max_queue_size=12)), []
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
        assert (len(batcher._queue), batcher._queue.size) == (0, 0)
        await batcher.stop()

    asyncio.run(scenario())
    assert all(n == 1 for n in backend.seen.values())


async def test_a_short_pass_for_one_request_runs_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.inference.batcher.INLINE_S", 10.0)  # also on a busy machine
    threads = list[bool]()
    here = threading.current_thread()
    backend, of = FakeBackend(), table(1, 3)
    record = lambda *_: threads.append(threading.current_thread() is here)  # noqa: E731
    batcher = Batcher(backend, HEAD, on_forward=record)
    batcher.start()

    async def submit(first: int = 1) -> ScoreResult:
        return await batcher.submit(np.full(4, first, np.int64), of, np.arange(3))

    async def one_of_several() -> ScoreResult:
        SEVERAL.set(True)
        return await submit()

    async def where(*calls: Awaitable[ScoreResult]) -> list[bool]:
        threads.clear()
        await asyncio.gather(*calls)
        return list(threads)

    assert await where(submit()) == [False]
    assert await where(submit()) == [False]  # is_quiet is not set
    batcher.is_quiet = lambda: True
    assert await where(submit()) == [True]
    assert await where(submit(2), submit(3)) == [True, True]
    assert await where(asyncio.create_task(one_of_several())) == [False]
    np.testing.assert_allclose((await submit(5)).p, expected(5, of, np.arange(3)), atol=1e-5)
    backend.error = RuntimeError("the text of an instruction")
    with pytest.raises(UnavailableError):
        await submit()
    backend.error = None
    monkeypatch.setattr("engine.inference.batcher.INLINE_S", 1e-9)
    assert await where(submit()) == [False]
    await batcher.stop()


async def test_a_request_that_finds_a_pass_running_waits_for_its_end() -> None:
    backend, of = FakeBackend(), table(1, 3)
    batcher = Batcher(backend, HEAD)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(3)
    await batcher.submit(tokens, of, rows)
    backend.gate.clear()
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    batcher.is_quiet = lambda: True
    waiting = [asyncio.create_task(batcher.submit(tokens, of, rows)) for _ in range(3)]
    await asyncio.sleep(0.05)
    backend.gate.set()
    await asyncio.gather(running, *waiting)
    assert backend.batches == [1, 1, 3]
    await batcher.stop()


async def test_cancelled_and_expired_requests_are_not_forwarded() -> None:
    backend, of = FakeBackend(), table(1, 3)
    backend.gate.clear()
    batcher = Batcher(backend, HEAD)
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


async def test_full_queue_refuses_and_recovers() -> None:
    backend, of = FakeBackend(), table(1, 1)
    backend.gate.clear()
    batcher = Batcher(backend, HEAD, BatchLimits(max_queue_size=2))
    assert batcher.overload_signal() is None
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(batcher.submit(tokens, of, rows)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as refused:
        await batcher.submit(tokens, of, rows)
    assert refused.value.retry_after_s > 0
    busy = batcher.overload_signal()
    assert busy is not None
    assert not busy.is_set()
    backend.gate.set()
    assert busy.wait(5)
    assert len(await asyncio.gather(running, *waiting)) == 3
    assert (await batcher.submit(tokens, of, rows)).queue_s >= 0
    await batcher.stop()


@pytest.mark.parametrize("fault", [RuntimeError("the text of an instruction"), SystemExit(1)])
async def test_failing_forward_pass_fails_only_its_requests(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, HEAD)
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


async def test_ended_thread_and_task_are_restarted(caplog: pytest.LogCaptureFixture) -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, HEAD)
    batcher.start()
    tokens, rows = np.ones(4, np.int64), np.arange(1)
    await batcher.submit(tokens, of, rows)
    await batcher._thread.stop()  # the thread ends
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    backend.gate.clear()
    running = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(batcher.submit(tokens, of, rows))
    await asyncio.sleep(0)
    assert batcher._task is not None
    batcher._task.cancel()  # the task ends, and fails its batch and the queue
    for failed in (running, waiting):
        with pytest.raises(UnavailableError):
            await failed
    backend.gate.set()
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    queue, batcher._queue.next_batch = batcher._queue, None  # type: ignore[assignment,method-assign]
    with pytest.raises(UnavailableError):  # a fault in the batcher itself
        await batcher.submit(tokens, of, rows)
    del queue.next_batch
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()


async def test_request_larger_than_its_estimate_is_checked_by_its_size() -> None:
    batcher = Batcher(FakeBackend(), HEAD)
    batcher.start()
    of, rows, tokens = table(1, 2), np.arange(2), np.ones(62, np.int64)
    expired = time.monotonic() - 1
    with pytest.raises(DeadlineError, match="the deadline leaves"):
        await batcher.submit(tokens, of, rows, expired, admitted_size=63)
    assert len(batcher._queue) == 0
    await batcher.stop()


async def test_hanging_forward_pass_fails_requests_at_their_deadlines() -> None:
    backend, of = FakeBackend(), table(1, 1)
    batcher = Batcher(backend, HEAD)
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
    with pytest.raises(WaitTooLongError):  # already late, so expected to stay late as long again
        await batcher.submit(tokens, of, rows, time.monotonic() + 0.05)
    backend.gate.set()
    assert (await batcher.submit(tokens, of, rows)).p.shape == (1,)
    await batcher.stop()


class FakeListener:
    """Records the liveness that a server's listener would report."""

    def __init__(self) -> None:
        self.alive: list[bool] = []

    async def live(self, alive: bool) -> None:
        self.alive.append(alive)


async def test_hanging_forward_pass_fails_liveness_until_it_continues() -> None:
    backend, listener = FakeBackend(), FakeListener()
    backend.gate.clear()
    batcher = Batcher(backend, HEAD)
    batcher.start()
    watch = asyncio.create_task(watch_stalls(batcher, [cast(Listener, listener)], limit_s=0.05))
    job = asyncio.create_task(batcher.submit(np.ones(3, np.int64), table(1, 7), np.arange(7)))
    async with asyncio.timeout(10):
        while len(listener.alive) < 1:
            await asyncio.sleep(0.01)
        backend.gate.set()
        await job
        while len(listener.alive) < 2:
            await asyncio.sleep(0.01)
    assert listener.alive == [False, True]
    watch.cancel()
    await batcher.stop()


async def test_repeated_failures_fail_liveness_until_a_success() -> None:
    backend, listener = FakeBackend(), FakeListener()
    batcher = Batcher(backend, HEAD)
    batcher.start()
    watch = asyncio.create_task(watch_stalls(batcher, [cast(Listener, listener)], limit_s=0.2))

    async def ask() -> None:
        await batcher.submit(np.ones(3, np.int64), table(1, 7), np.arange(7))

    backend.error = RuntimeError()
    with pytest.raises(UnavailableError):
        await ask()
    await asyncio.sleep(0.4)
    assert listener.alive == [], "one failure and silence are do not justify a restart"
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            await ask()
        while len(listener.alive) < 1:
            await asyncio.sleep(0.01)
        backend.error = None
        await ask()
        while len(listener.alive) < 2:
            await asyncio.sleep(0.01)
    assert listener.alive == [False, True]
    watch.cancel()
    await batcher.stop()
