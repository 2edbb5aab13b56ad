"""The real Envoy with deploy/envoy/envoy.yaml, its ports replaced by free ones.

The binary is in a virtual environment of its own (make .venv-envoy/.done).
"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.process import ROOT, free_port

BINARY = ROOT / ".venv-envoy" / "bin" / "envoy"
CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
LISTENER, ADMIN, EXTPROC, LARGE, SMALL = 10000, 9901, 50052, 8001, 8002
FULL_DUPLEX = {
    "request_body_mode: BUFFERED": "request_body_mode: FULL_DUPLEX_STREAMED",
    "request_trailer_mode: SKIP": "request_trailer_mode: SEND",
}


@dataclass(frozen=True)
class Envoy:
    """port: of its listener. log: what it printed, access log included."""

    port: int
    admin: int
    log: Path

    def clusters(self) -> str:
        """What it knows of the servers behind it, health included."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/clusters", timeout=5) as page:
            return str(page.read().decode())


def config(ports: Mapping[int, int], changes: Mapping[str, str]) -> str:
    """deploy/envoy/envoy.yaml with other ports; changes: text -> text."""
    text = CONFIG.read_text(encoding="utf-8")
    for old, new in [
        *changes.items(),
        *((f"port_value: {a}}}", f"port_value: {b}}}") for a, b in ports.items()),
    ]:
        if old not in text:
            raise ValueError(f"{CONFIG} has no {old!r}")
        text = text.replace(old, new)
    return text


@contextmanager
def envoy(
    folder: Path, extproc: int, large: int, small: int, changes: Mapping[str, str] = {}
) -> Iterator[Envoy]:
    """A ready one, stopped at the end. extproc, large, small: ports of what stands behind it."""
    found = Envoy(free_port(), free_port(), folder / f"envoy-{time.monotonic_ns()}.log")
    file = found.log.with_suffix(".yaml")
    ports = {
        LISTENER: found.port,
        ADMIN: found.admin,
        EXTPROC: extproc,
        LARGE: large,
        SMALL: small,
    }
    file.write_text(config(ports, changes), encoding="utf-8")
    command = [str(BINARY), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id"]
    command += ["--log-level", "warning", "--file-flush-interval-msec", "50"]
    with found.log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _await_ready(process, found)
        yield found
    finally:
        process.terminate()
        process.wait(20)


def _await_ready(process: subprocess.Popen[bytes], found: Envoy) -> None:
    """/ready answers 200 once the clusters were health-checked for the first time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found.admin}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("Envoy was not ready:\n" + found.log.read_text(encoding="utf-8"))
