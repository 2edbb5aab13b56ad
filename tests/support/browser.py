"""Run servers with a web console, and call its HTTP API."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.client.channel import INSECURE, Credentials
from tests.serving.test_security import write_tokens
from tests.support.certificates import make
from tools.processes import Server, serving

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Console:
    """A server with a console at host:port. tls: None speaks plain text."""

    server: Server
    host: str
    port: int
    tls: ssl.SSLContext | None = None
    tokens: dict[str, str] | None = None
    access: Credentials = INSECURE

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}/"

    def connect(self) -> http.client.HTTPConnection:
        if self.tls:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=PATIENCE_S, context=self.tls
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Send one request; return its status, and its body as JSON or text."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            named.setdefault("Content-Type", "application/json")
        with closing(self.connect()) as connection:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text

    def get(self, path: str) -> Any:
        status, body = self.ask("GET", path)
        assert status == 200, body
        return body

    def route(self, **request: Any) -> Any:
        status, body = self.ask("POST", "/api/route", request)
        assert status == 200, body
        return body

    def stream(self, after: int = 0, **headers: str) -> http.client.HTTPResponse:
        """Open a stream of decisions; wait while the server has too many viewers."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = self.connect()
            connection.request("GET", f"/api/decisions?after={after}", headers=headers)
            answer = connection.getresponse()  # holds the socket
            if answer.status == 200:
                return answer
            assert (answer.status, time.monotonic() < deadline) == (503, True), answer.read()
            answer.close()
            time.sleep(0.1)

    @contextmanager
    def watching(self, after: int = 0, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the decisions of a stream."""
        with closing(self.stream(after, **headers)) as answer:
            lines = (line.decode() for line in iter(answer.readline, b""))
            yield (json.loads(line[6:]) for line in lines if line.startswith("data: {"))


@contextmanager
def showing(folder: Path, *flags: str, **more: Any) -> Iterator[Console]:
    """Run a server with a console. more: fields of Console."""
    with serving(folder / "s.sqlite", "--console-address", "127.0.0.1:0", *flags) as server:
        match = re.search(r"console on https?://([\d.]+):(\d+)/", server.printed())
        assert match is not None
        yield Console(server, match[1], int(match[2]), **more)


@contextmanager
def showing_guarded(folder: Path) -> Iterator[Console]:
    """Run a server with a console, TLS, tokens, and texts in the audit log."""
    authority = make(folder, "authority")
    ours = make(folder, "server", authority)
    tokens = write_tokens(folder / "tokens.json", "route", "read", "admin")
    flags = [
        "--tls-certificate",
        str(ours.cert),
        "--tls-key",
        str(ours.key),
        "--audit-include-text",
    ]
    flags += ["--auth-tokens-file", str(folder / "tokens.json")]
    tls = ssl.create_default_context(cafile=authority.cert)
    access = Credentials(authority.cert, token=tokens["route"])
    with showing(folder, *flags, tls=tls, tokens=tokens, access=access) as console:
        yield console
