"""Run a real Envoy with a configuration of deploy/envoy, its addresses replaced by local ones.

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
HOSTED = ROOT / "deploy" / "envoy" / "hosted.yaml"
LISTENER, ADMIN, EXTPROC, LARGE, SMALL, VLLM = 10000, 9901, 50052, 8001, 8002, 8000
KEYS = ("openai", "anthropic", "openrouter")
TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
FULL_DUPLEX = {
    "request_body_mode: BUFFERED": "request_body_mode: FULL_DUPLEX_STREAMED",
    "request_trailer_mode: SKIP": "request_trailer_mode: SEND",
}


@dataclass(frozen=True)
class Hosted:
    """Fakes for the upstreams of hosted.yaml.

    by_host: host name -> the fake that has a certificate for it. authority: PEM of their issuer.
    """

    by_host: Mapping[str, Upstream]
    vllm: Upstream
    authority: Path


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


def config(file: Path, changes: Mapping[str, str]) -> str:
    """Return a configuration of deploy/envoy with each key of `changes` replaced by its value."""
    text = file.read_text(encoding="utf-8")
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{file} has no {old!r}")
        text = text.replace(old, new)
    return text


def _ports(changes: Mapping[int, int]) -> dict[str, str]:
    return {f"port_value: {old}}}": f"port_value: {new}}}" for old, new in changes.items()}


@contextmanager
def start_envoy(folder: Path, file: Path, changes: Mapping[str, str]) -> Iterator[Envoy]:
    """Start Envoy on free ports, wait until it is ready, and stop it at the end."""
    found = Envoy(free_port(), free_port(), folder / f"envoy-{time.monotonic_ns()}.log")
    edited = found.log.with_suffix(".yaml")
    ports = _ports({LISTENER: found.port, ADMIN: found.admin})
    edited.write_text(config(file, {**changes, **ports}), encoding="utf-8")
    command = [str(BINARY), "-c", str(edited), "--concurrency", "1", "--use-dynamic-base-id"]
    command += ["--log-level", "warning", "--file-flush-interval-msec", "50"]
    # /ready answers 200 once the clusters were health-checked for the first time.
    with running(command, found.log, f"http://127.0.0.1:{found.admin}/ready"):
        yield found


@contextmanager
def envoy(
    folder: Path,
    server: Server,
    large: Upstream,
    small: Upstream,
    changes: Mapping[str, str] = {},
) -> Iterator[Envoy]:
    """Start Envoy with two upstreams. server: has ext_proc."""
    ports = {EXTPROC: extproc_port(server), LARGE: large.port, SMALL: small.port}
    with start_envoy(folder, CONFIG, {**changes, **_ports(ports)}) as found:
        yield found


@contextmanager
def hosted_envoy(
    folder: Path, server: Server, upstreams: Hosted, changes: Mapping[str, str] = {}
) -> Iterator[Envoy]:
    """Start Envoy with upstreams of several providers. server: has ext_proc."""
    keys = folder / "keys"
    keys.mkdir()
    for name in KEYS:
        (keys / name).write_text(f"key-of-{name}")
    hosts = {
        f"address: {host}, port_value: 443}}": f"address: 127.0.0.1, port_value: {each.port}}}"
        for host, each in upstreams.by_host.items()
    }
    files = {"/etc/envoy/keys": str(keys), TRUSTED: str(upstreams.authority)}
    ports = _ports({EXTPROC: extproc_port(server), VLLM: upstreams.vllm.port})
    with start_envoy(folder, HOSTED, {**changes, **hosts, **files, **ports}) as found:
        yield found


def extproc_port(server: Server) -> int:
    """Return the port of a server's ext_proc service."""
    return int(server.extproc_address.rpartition(":")[2])
