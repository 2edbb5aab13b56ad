"""A real LiteLLM proxy from its own virtual environment, with deploy/litellm/config.yaml."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.process import ROOT, free_port

ENVIRONMENT = ROOT / ".venv-litellm"  # made by `make litellm`
CONFIG = ROOT / "deploy" / "litellm" / "config.yaml"
START_S = 120.0


@dataclass(frozen=True)
class Proxy:
    """url: of the proxy. key: made for this run. log: file of everything it prints."""

    url: str
    key: str
    log: Path


@contextmanager
def proxy(folder: Path, settings: Mapping[str, str], config: Path = CONFIG) -> Iterator[Proxy]:
    """Ready to serve. settings: what the environment tells the callback and the configuration."""
    port, log, key = free_port(), folder / "litellm.log", f"sk-{secrets.token_hex(32)}"
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG")}
    environment = keep | {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment["LITELLM_MASTER_KEY"] = key
    command = [str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment | settings, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, process, log)
        yield Proxy(url, key, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(
        "LiteLLM was not ready:\n" + log.read_text("utf-8", errors="replace")[-2000:]
    )
