"""Run a real LiteLLM proxy from its own environment, with deploy/litellm/config.yaml."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.processes import ROOT, free_port, running

# Made by `make litellm`; LITELLM_ENVIRONMENT names one with another version of LiteLLM.
ENVIRONMENT = Path(os.environ.get("LITELLM_ENVIRONMENT", ROOT / ".venv-litellm"))
CONFIG = ROOT / "deploy" / "litellm" / "config.yaml"
START_S = 120.0


@dataclass(frozen=True)
class Proxy:
    """url: of the proxy. key: created for this run. log: file with its output."""

    url: str
    key: str
    log: Path


@contextmanager
def proxy(folder: Path, settings: dict[str, str], config: Path = CONFIG) -> Iterator[Proxy]:
    """Start a proxy and wait until it is ready. settings: environment variables for it."""
    port, log, key = free_port(), folder / "litellm.log", f"sk-{secrets.token_hex(32)}"
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR", "LANG")}
    environment = keep | {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    # Otherwise it asks for a tokenizer to count what a model with "llama-3" in its name streamed.
    environment |= {"LITELLM_MASTER_KEY": key, "HF_HUB_OFFLINE": "1"}
    command = [str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    url, more = f"http://127.0.0.1:{port}", {"cwd": folder, "env": environment | settings}
    with running(command, log, f"{url}/health/liveliness", START_S, **more):
        yield Proxy(url, key, log)
