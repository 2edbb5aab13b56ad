"""End the process in time, whatever hangs.

A thread that waits for a disk or a database cannot be ended, and Python waits for such threads at
exit. So each step of stopping has a limit, and the process ends without what is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

RESERVE_S = 1.5  # after the grace period, for the steps of stopping; then the process ends
CLOSE_S = 1.0  # for what is still to be closed when the grace period is over
JOIN_S = 0.3
log = logging.getLogger(__name__)


def last_resort(grace_s: float) -> threading.Timer:
    """Return a timer that ends the process RESERVE_S after the grace period, even if the event loop
    hangs by then. The caller starts it at the signal, and cancels it once the process ends by
    itself."""
    timer = threading.Timer(grace_s + RESERVE_S, _exit, ("the grace period is over", 1))
    timer.daemon = True
    return timer


async def bounded(name: str, step: Coroutine[Any, Any, None], deadline: float) -> None:
    """Run a step of stopping until `deadline` of time.monotonic(), then leave it behind.

    Failures are logged, so that the next step is taken.
    """
    task = asyncio.create_task(step)
    done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
    if not done:
        log.warning("%s did not stop in time and is left behind", name)
        task.cancel()
    elif (error := task.exception()) is not None:
        log.error("%s did not stop cleanly: %s", name, type(error).__name__)


def leave_hung_threads(executor: ThreadPoolExecutor) -> None:
    """End the process if threads hang that Python would wait for; return if there are none.

    executor: the event loop's own.
    """
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + JOIN_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _exit(f"{thread.name} still waits", 0)


def _exit(reason: str, status: int) -> None:
    log.warning("process ends at once: %s", reason)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
