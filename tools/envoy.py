"""Run a real Envoy with deploy/envoy/envoy.yaml, its ports replaced by free ones.

The binary is in a virtual environment of its own (make .venv-envoy/.done).
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.fake_upstream import Upstream
from tools.processes import ROOT, Server, free_port, running

BINARY = ROOT / ".venv-envoy" / "bin" / "envoy"
CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
LISTENER, ADMIN, EXTPROC, LARGE, SMALL = 10000, 9901, 50052, 8001, 8002
FULL_DUPLEX = {
    "request_body_mode: BUFFERED": "request_body_mode: FULL_DUPLEX_STREAMED",
    "request_trailer_mode: SKIP": "request_trailer_mode: SEND",
}


@dataclass(frozen=True)
class Envoy:
    """port: of its listener. log: its output, including the access log."""

    port: int
    admin: int
    log: Path

    def clusters(self) -> str:
        """Return what it knows about the servers behind it, including their health."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/clusters", timeout=5) as page:
            return str(page.read().decode())


def config(ports: Mapping[int, int], changes: Mapping[str, str]) -> str:
    """Return deploy/envoy/envoy.yaml with other ports. changes: further replacements of text."""
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
    folder: Path,
    server: Server,
    large: Upstream,
    small: Upstream,
    changes: Mapping[str, str] = {},
) -> Iterator[Envoy]:
    """Start Envoy, wait until it is ready, and stop it at the end. server: has ext_proc."""
    found = Envoy(free_port(), free_port(), folder / f"envoy-{time.monotonic_ns()}.log")
    file = found.log.with_suffix(".yaml")
    ports = {
        LISTENER: found.port,
        ADMIN: found.admin,
        EXTPROC: int(server.extproc_address.rpartition(":")[2]),
        LARGE: large.port,
        SMALL: small.port,
    }
    file.write_text(config(ports, changes), encoding="utf-8")
    command = [str(BINARY), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id"]
    command += ["--log-level", "warning", "--file-flush-interval-msec", "50"]
    # /ready answers 200 once the clusters were health-checked for the first time.
    with running(command, found.log, f"http://127.0.0.1:{found.admin}/ready"):
        yield found
