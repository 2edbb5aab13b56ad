"""Signals are acted on although the event loop is blocked."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

GRACE_S = 0.2
PROGRAM = """
import asyncio, ctypes, threading, time
from engine.serving.signals import Stopping

async def main():
    stopping = Stopping({grace_s}, lambda: print("reopened", flush=True))
    print("ready", flush=True)
    {work}

asyncio.run(main())
"""
BLOCKED = {
    "sleeps": "time.sleep(60)",
    "computes": "while True: pass",
    "waits for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "is in a library that retries": "while True: ctypes.CDLL(None).sleep(60)",
}
AWAITS = "await stopping.begun.wait(); stopping.last_resort.cancel()"


def started(work: str) -> subprocess.Popen[str]:
    program = PROGRAM.format(grace_s=GRACE_S, work=work)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("work", BLOCKED.values(), ids=BLOCKED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_blocked_server_ends_after_the_grace_period(work: str, number: signal.Signals) -> None:
    with started(work) as process:
        process.send_signal(number)
        try:
            process.wait(GRACE_S + 2)
        finally:
            process.kill()
        assert process.returncode == 1
        assert process.stderr is not None
        assert "the grace period is over" in process.stderr.read()


def test_second_signal_ends_a_blocked_server_at_once() -> None:
    with started(BLOCKED["sleeps"]) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S + 2)
        finally:
            process.kill()
        assert process.returncode in {-signal.SIGINT, -signal.SIGTERM}


def test_loop_that_runs_stops_by_itself_and_reopens_its_logs() -> None:
    with started(AWAITS) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reopened\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
