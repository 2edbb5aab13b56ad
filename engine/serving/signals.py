"""Signals of a server, received by a thread: an event loop that is blocked does not delay them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from engine.serving.shutdown import last_resort


class Stopping:
    """What the signals of the process do, even while the event loop is blocked.

    The first SIGINT or SIGTERM sets `begun` and starts the time after which `last_resort` ends the
    process; the second one kills it. SIGHUP reopens the logs. Make it on the event loop.
    """

    def __init__(self, grace_s: float, reopen: Callable[[], None]) -> None:
        self.begun = asyncio.Event()
        self.last_resort = last_resort(grace_s)
        self._loop = asyncio.get_running_loop()
        self._reopen = reopen
        self._signaled = False
        receive_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._on_signal)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._reopen)
        elif self._signaled:
            end_by(number)
        else:
            self._signaled = True
            self.last_resort.start()
            self._loop.call_soon_threadsafe(self.begun.set)


def receive_signals(numbers: Iterable[int], on_signal: Callable[[int], None]) -> None:
    """Call `on_signal` in a thread of its own for each of these signals from now on.

    asyncio's own handlers run on the event loop, and Python's on the main thread once it executes
    Python code again. The wakeup socket is written as soon as the signal arrives. It belongs to the
    process, so add_signal_handler of the loop must not be called afterwards. Call this from the
    main thread.
    """
    receiver, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
    wanted = frozenset(int(number) for number in numbers)
    for number in wanted:
        signal.signal(number, _ignore)
        signal.siginterrupt(number, False)

    def receive() -> None:
        while received := receiver.recv(1):
            if received[0] in wanted:
                on_signal(received[0])

    threading.Thread(target=receive, name="signals", daemon=True).start()


def end_by(number: int) -> None:
    """End the process by the signal, as if it had no handler. Any thread may call it."""
    ctypes.CDLL(None).signal(number, 0)  # signal.signal is for the main thread alone
    os.kill(os.getpid(), number)


def _ignore(number: int, frame: object) -> None:
    """Stand for a handler: without one, the wakeup socket is not written."""
