"""A fake OpenAI-compatible upstream: says who it is, which model was asked for and what came.

    python -m bench.upstream NAME PORT

For the Envoy demo, tests and benchmarks; nothing here answers a question.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECES = 5  # of a streamed answer
PAUSE_S = 0.02  # between them


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    name = ""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self._answer(b"".join(self._chunks()))
        else:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _answer(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        asked = asked if isinstance(asked, dict) else {}
        told = {
            "upstream": self.name,
            "path": self.path,
            "model": asked.get("model"),
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "headers": {k.lower(): v for k, v in self.headers.items()},
        }
        if asked.get("stream"):
            self._stream(told)
            return
        said = f"{self.name} answers as {asked.get('model')}"
        choices = [{"index": 0, "message": {"role": "assistant", "content": said}}]
        content = json.dumps({"object": "chat.completion", "choices": choices, **told}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, told: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in [*pieces(told), b""]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(PAUSE_S)


def pieces(told: dict[str, Any]) -> list[bytes]:
    """The events of a streamed answer."""
    events = [json.dumps({"piece": i, "model": told["model"]}) for i in range(PIECES)]
    return [f"data: {event}\n\n".encode() for event in [*events, "[DONE]"]]


@contextmanager
def upstream(name: str, port: int = 0) -> Iterator[int]:
    """One that runs; its port."""
    handler = type("Handler", (_Handler,), {"name": name})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with upstream(sys.argv[1], int(sys.argv[2])):
        print(f"{sys.argv[1]} listens on port {sys.argv[2]}", flush=True)
        threading.Event().wait()
