"""A minimal Hugging Face hub over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """repositories: id -> path -> content. Every file is sent inline, none as LFS."""

    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """Create a repository, or commit to one."""
        raw = self._body()
        if self.path == "/api/repos/create":
            name = json.loads(raw)
            identifier = f"{name['organization']}/{name['name']}"
            self.repositories.setdefault(identifier, {})
            return self._json({"url": f"{self._address()}/{identifier}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        _, _, _, user, name, action, _ = self.path.split("/")
        if action == "preupload":
            paths = [file["path"] for file in json.loads(raw)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self._json({"files": modes})
        for line in raw.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repositories[f"{user}/{name}"][entry["value"]["path"]] = content
        address = f"{self._address()}/{user}/{name}/commit/{COMMIT}"
        return self._json({"commitUrl": address, "commitOid": COMMIT})

    def do_GET(self) -> None:
        """Describe a repository, or send a file of one."""
        self._body()
        parts = self.path.split("?")[0].strip("/").split("/")
        identifier = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.repositories.get(identifier)
        if files is None:
            return self._json({"error": "Repository not found"}, 404)
        if parts[0] == "api" and "tree" in parts:
            sizes = [{"path": path, "size": len(content)} for path, content in files.items()]
            return self._json([{"type": "file", "oid": "0", **size} for size in sizes])
        if parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": identifier, "sha": COMMIT, "siblings": siblings})
        content = files["/".join(parts[4:])]
        return self._send(content, "application/octet-stream")

    def do_HEAD(self) -> None:
        """Send the headers of GET."""
        self.do_GET()

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Run a hub; yield its address and its repositories."""
    repositories: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (Hub,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
