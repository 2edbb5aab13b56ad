"""A serving process of our own on a free port, for the demo, the benchmarks and the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "artifacts" / "bundle"


@dataclass
class Server:
    """A serving process; log holds what it printed, both streams. address: HOST:PORT."""

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

    def resident_mb(self) -> float:
        """Memory it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        resident = next(x for x in status.splitlines() if x.startswith("VmRSS"))
        return int(resident.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Seconds of processor time it used so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    store: Path,
    *arguments: str,
    bundle: Path = BUNDLE,
    python: tuple[str, ...] = (),
    port: int = 0,
) -> Server:
    """Start `modelsat serve`, on a free port where it is 0; does not wait until it is ready."""
    command = [sys.executable, *python, "-m", "engine.cli", "serve", "--bundle", str(bundle)]
    command += ["--store", str(store), "--address", f"127.0.0.1:{port}"]
    command += ["--outcomes", str(store.with_name("outcomes.sqlite")), *arguments]
    log = store.with_name(f"server-{time.monotonic_ns()}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    return Server(process, log)


def await_ready(server: Server, timeout_s: float = 60.0) -> Server:
    """Wait for the ready line; raises RuntimeError with its output if the server ends first."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.process.poll() is None:
        ready = [line for line in server.printed().splitlines() if line.startswith("ready")]
        if ready:
            server.address = ready[0].split()[2].rstrip(":")
            return server
        time.sleep(0.05)
    server.kill()
    raise RuntimeError("the server was not ready:\n" + server.printed())


@contextmanager
def serving(store: Path, *arguments: str, bundle: Path = BUNDLE) -> Iterator[Server]:
    """A ready server; stopped at the end if it still runs."""
    server = await_ready(launch(store, *arguments, bundle=bundle))
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()
