"""What tests share: the real bundle, and real servers on real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.client import Client

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = Path(os.environ.get("MODELSAT_BUNDLE", ROOT / "artifacts" / "bundle"))
CHECKPOINT = Path(os.environ.get("MODELSAT_CHECKPOINT", ROOT / "artifacts" / "checkpoint"))
INSTRUCTIONS = (ROOT / "tests" / "instructions.txt").read_text(encoding="utf-8").splitlines()


@dataclass
class Server:
    """A serving process; log holds what it printed, both streams."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def printed(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        """SIGTERM, as an orchestrator stops it; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def launch(store: Path, *arguments: str, python: tuple[str, ...] = ()) -> Server:
    """Start `modelsat serve` on a free port; does not wait until it is ready."""
    command = [sys.executable, *python, "-m", "engine.cli", "serve", "--bundle", str(BUNDLE)]
    command += ["--store", str(store), "--address", "127.0.0.1:0", *arguments]
    log = store.with_name(f"server-{time.monotonic_ns()}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    return Server(process, log)


def await_ready(server: Server, timeout_s: float = 60.0) -> Server:
    """Wait for the ready line; fails the test with the output if the server ends first."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.process.poll() is None:
        ready = [line for line in server.printed().splitlines() if line.startswith("ready")]
        if ready:
            server.address = ready[0].split()[2].rstrip(":")
            return server
        time.sleep(0.05)
    server.kill()
    pytest.fail("the server was not ready:\n" + server.printed())


@contextmanager
def serving(store: Path, *arguments: str) -> Iterator[Server]:
    """A ready server; killed at the end if it still runs."""
    server = await_ready(launch(store, *arguments))
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the zoo; tests that use it leave its candidates as they were."""
    with serving(tmp_path_factory.mktemp("store") / "candidates.sqlite") as server:
        yield server


@pytest.fixture
def client(shared_server: Server) -> Iterator[Client]:
    """A client of shared_server."""
    with Client(shared_server.address, timeout_s=30) as client:
        yield client
