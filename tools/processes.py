"""Start servers and other programs on free ports, for demos, benchmarks and tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "artifacts" / "bundle"


@dataclass
class Server:
    """A server process. log: its stdout and stderr. address: HOST:PORT, once it is ready."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    @property
    def extproc_address(self) -> str:
        """HOST:PORT of its ext_proc service. Raises ValueError if it has none."""
        match = re.search(r"ext_proc on (\S+)", self.printed())
        if match is None:
            raise ValueError("the server has no ext_proc address")
        return match[1]

    def printed(self) -> str:
        """Return everything that it has printed so far."""
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        """Send SIGTERM, as an orchestrator does; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def resident_mb(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        resident = next(x for x in status.splitlines() if x.startswith("VmRSS"))
        return int(resident.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Return the processor time that it has used so far, in seconds."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: Sequence[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a program with its output in `log`. more: arguments of subprocess.Popen."""
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, **more)


def is_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until ready() is true; return False if the program ends or the time is over first."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return True
        time.sleep(0.05)
    return False


@contextmanager
def running(
    command: Sequence[str], log: Path, url: str, timeout_s: float = 60.0, **more: Any
) -> Iterator[None]:
    """Start a program, wait until GET `url` returns 200, and stop the program at the end.

    more: arguments of subprocess.Popen. Raises RuntimeError with the end of its output if the
    program does not become ready.
    """

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - a loopback URL
                return True
        except OSError:
            return False

    process = start(command, log, **more)
    try:
        if not is_ready(process, answers, timeout_s):
            printed = log.read_text("utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{Path(command[0]).name} was not ready:\n{printed}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launch(
    store: Path,
    *arguments: str,
    bundle: Path = BUNDLE,
    python: tuple[str, ...] = (),
    port: int = 0,
) -> Server:
    """Start `modelsat serve` without waiting until it is ready. port: 0 means a free one."""
    command = [
        sys.executable,
        *python,
        "-m",
        "engine.cli.main",
        "serve",
        "--bundle",
        str(bundle),
    ]
    command += ["--candidates-db", str(store), "--address", f"127.0.0.1:{port}"]
    command += ["--outcomes-db", str(store.with_name("outcomes.sqlite")), *arguments]
    log = store.with_name(f"server-{time.monotonic_ns()}.log")
    return Server(start(command, log, cwd=ROOT), log)


def await_ready(server: Server, timeout_s: float = 60.0) -> Server:
    """Wait for the ready line. Raises RuntimeError with the output if the server ends first."""

    def has_printed_ready() -> bool:
        match = re.search(r"^ready on (\S+):", server.printed(), re.MULTILINE)
        server.address = match[1] if match else ""
        return match is not None

    if is_ready(server.process, has_printed_ready, timeout_s):
        return server
    server.kill()
    raise RuntimeError("the server was not ready:\n" + server.printed())


@contextmanager
def serving(store: Path, *arguments: str, bundle: Path = BUNDLE) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it at the end."""
    server = await_ready(launch(store, *arguments, bundle=bundle))
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()
