"""The event loop's selector loses nothing, whenever it holds."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading

import pytest

from engine.serving.event_loop import MAX_HOLD_S, OverloadSelector


def test_what_arrives_while_it_holds_is_given_after_the_hold() -> None:
    reading, writing = os.pipe()
    free = threading.Event()
    with OverloadSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        selector.overload_signal = lambda: free

        def forward() -> None:
            os.write(writing, b"x")
            free.set()

        timer = threading.Timer(MAX_HOLD_S / 5, forward)
        timer.start()
        while not (events := selector.select()):
            pass
        assert [key.fd for key, _ in events] == [reading]
        timer.join()
    os.close(reading)
    os.close(writing)


def test_asking_whether_it_is_quiet_takes_no_event() -> None:
    reading, writing = os.pipe()
    with OverloadSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        assert selector.is_quiet()
        os.write(writing, b"x")
        assert not selector.is_quiet()
        assert [key.fd for key, _ in selector.select()] == [reading]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("overloaded", [True, False])
def test_a_loop_on_it_keeps_its_timers_and_threads(overloaded: bool) -> None:
    never = threading.Event()
    selector = OverloadSelector()
    selector.overload_signal = lambda: never if overloaded else None

    async def work() -> list[int]:
        async def late(i: int) -> int:
            await asyncio.sleep(0.001 * i)
            return await asyncio.to_thread(lambda: i)

        return await asyncio.gather(*(late(i) for i in range(20)))

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(work()) == list(range(20))


def test_it_does_not_spin_where_no_forward_runs() -> None:
    free = threading.Event()
    free.set()
    selector = OverloadSelector()
    selector.overload_signal = lambda: free
    woken = 0

    async def idle() -> None:
        select = selector.select

        def counted(timeout: float | None = None) -> object:
            nonlocal woken
            woken += 1
            return select(timeout)

        selector.select = counted  # type: ignore[method-assign,assignment]
        await asyncio.sleep(0.5)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(idle())
    assert woken < 20  # spinning made it hundreds
