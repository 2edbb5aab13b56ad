"""A fake chat completions endpoint whose replies a function makes, on a real socket."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], "str | int"]  # body -> text of the reply, or an HTTP status


@dataclass
class FakeChat:
    """asked: how often each last message was answered. bodies: all that was sent."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def chat_endpoint(answer: Answer, **usage: Any) -> Iterator[FakeChat]:
    """Serve `answer` on the loopback. usage: added to the token counts of every reply."""
    fake, lock = FakeChat(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            said = answer(body)
            with lock:
                fake.bodies.append(body)
                if isinstance(said, str):
                    fake.asked[body["messages"][-1]["content"]] += 1
            message = {"role": "assistant", "content": said}
            counts = {"prompt_tokens": 10, "completion_tokens": 20, **usage}
            document = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": counts}
            content = json.dumps(document).encode()
            self.send_response(200 if isinstance(said, str) else said)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with suppress(OSError):  # the caller was killed
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
