"""Kind: no share per caller. Principals take turns, and a backlog delays only its own principal."""

from __future__ import annotations

import asyncio
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.inference.request_queue import RECENT_S, PendingRequest, RequestQueue
from engine.registry.table import make_table

TABLE = make_table(1, [], 8)
NO_ROWS = np.empty(0, dtype=np.int64)
ARRIVALS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 40)), min_size=1, max_size=60
)
_arrived = count()


def request(principal: str, size: int) -> PendingRequest:
    tokens, deadline = np.zeros(size, np.int64), float("inf")
    result = asyncio.get_running_loop().create_future()
    return PendingRequest(
        tokens, TABLE, NO_ROWS, deadline, float(next(_arrived)), result, size, principal
    )


def served(queue: RequestQueue, budget: int) -> list[PendingRequest]:
    order = []
    while len(queue):
        batch = queue.next_batch(budget, 0.0, 0.0)
        assert batch.requests, "work conserving: a queue that is not empty forwards something"
        order += batch.requests
    return order


@given(ARRIVALS, st.integers(1, 100))
def test_all_is_served_and_each_principal_in_its_order(
    arrivals: list[tuple[str, int]], budget: int
) -> None:
    async def scenario() -> None:
        queue = RequestQueue()
        requests = [request(*each) for each in arrivals]
        for each in requests:
            queue.add(each)
        order = served(queue, 1)  # one request a pass: nothing fits besides the one that is due
        assert sorted(map(id, order)) == sorted(map(id, requests))
        for principal in "abc":
            mine = [each.arrived for each in order if each.principal == principal]
            assert mine == sorted(mine)
        assert queue.size == 0

    asyncio.run(scenario())


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5))
def test_a_backlog_delays_another_principal_by_no_more_than_its_share(
    backlog: int, heavy: int, light: int, lights: int
) -> None:
    async def scenario() -> None:
        queue = RequestQueue()
        for _ in range(backlog):
            queue.add(request("heavy", heavy))
        for _ in range(lights):
            queue.add(request("light", light))
        order = served(queue, 1)
        for n in range(1, lights + 1):
            at = [i for i, each in enumerate(order) if each.principal == "light"][n - 1]
            before = sum(each.size for each in order[:at] if each.principal == "heavy")
            # Goyal et al., theorem 1: apart by at most one request of each.
            assert before <= n * light + heavy + light

    asyncio.run(scenario())


@given(ARRIVALS, st.integers(1, 20))
def test_a_full_queue_makes_room_for_those_who_hold_less(
    arrivals: list[tuple[str, int]], limit: int
) -> None:
    async def scenario() -> None:
        queue = RequestQueue()
        for principal, size in arrivals:
            if len(queue) >= limit:
                before = {name: queue.count(name) for name in "abc"}
                removed = queue.pop_newest_of_largest(principal)
                if removed is None:
                    assert before[principal] >= max(before.values()) - 1
                    continue
                assert before[removed.principal] == max(before.values())
            queue.add(request(principal, size))
            assert len(queue) <= limit
        assert queue.size == sum(each.size for each in queue)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("light_ago_s", "light_waiting", "requests_in_pass"),
    [
        (None, 0, 10),  # no other principal: the whole budget
        (1.0, 0, 2),  # somebody who may ask again during the pass: what two of theirs take
        (RECENT_S / 2, 0, 2),
        (RECENT_S + 1, 0, 10),
        (1.0, 30, 10),  # they have a backlog as well: both gain from full passes
    ],
)
def test_a_backlog_is_served_in_short_passes_while_somebody_else_is_about(
    light_ago_s: float | None, light_waiting: int, requests_in_pass: int
) -> None:
    async def scenario() -> None:
        queue, now = RequestQueue(), 1000.0
        if light_ago_s is not None:
            for n in range(light_waiting + 1):
                asked = request("light", 40)
                asked.arrived = now - light_ago_s
                queue.add(asked)
                if n == 0:
                    queue.remove(asked)  # answered
        for _ in range(40):
            queue.add(request("heavy", 20))
        if light_waiting:
            assert queue.next_batch(200, now, 0.001).requests[0].principal == "light"
        batch = queue.next_batch(200, now, 0.001)
        assert batch.requests[0].principal == "heavy"
        assert len(batch.requests) == requests_in_pass

    asyncio.run(scenario())
