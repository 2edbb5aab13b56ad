"""The afternoon behind LiteLLM: the models of docs/how-to/envoy-hosted.md, in a LiteLLM proxy that
docs/how-to/litellm.md configures.

    python -m tests.reliability.afternoon_litellm

The configuration is the page's own; only the environment says where the fakes are. See
afternoon_envoy for what is played.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.reliability.afternoon_envoy import ASKS, FORMS, Phase, block, during, report
from tools.fake_upstream import upstream
from tools.litellm_proxy import Proxy, proxy
from tools.processes import ROOT, serving

PAGE = ROOT / "docs" / "how-to" / "litellm.md"
MODELS = {"gpt-mini", "claude-haiku-4-5", "llama-70b", "auto"}
KEY = "sk-upstream"


def ask(to: Proxy, number: int) -> tuple[str, bool]:
    """Send request `number`; return the model that answered, and whether it was not the first.

    Raises:
        ValueError: the answer is not what the client of that API expects.
    """
    path, more = FORMS[number % len(FORMS)]
    text = f"{ASKS[number % len(ASKS)]} ({number % 60})"
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
    headers = {"content-type": "application/json", "authorization": f"Bearer {to.key}"}
    if more.get("stream"):  # the fake streams chat completions alone
        headers["x-modelsat-denied-candidates"] = "haiku"
    client = http.client.HTTPConnection(to.url.removeprefix("http://"), timeout=60)
    try:
        client.request("POST", path, json.dumps(body), headers)
        answer = client.getresponse()
        raw = answer.read()
    finally:
        client.close()
    if more.get("stream") and b'data: {"error' in raw:  # LiteLLM ends so what had begun
        raise http.client.IncompleteRead(raw)
    model = answer.headers["x-selected-model"]
    if answer.status != 200 or model not in MODELS or b"answers" not in raw:
        raise ValueError(f"{path} {answer.status} by {model}: {raw[:300]!r}")
    return model, "x-modelsat-failed" in answer.headers


def play(folder: Path, seconds: float = 4.0) -> list[Phase]:
    """Play it in an empty folder. seconds: of each phase."""
    catalog, config = folder / "candidates.toml", folder / "config.yaml"
    catalog.write_text(block("toml"))
    config.write_text(block("yaml", "model_list", PAGE))
    with ExitStack() as stack, ExitStack() as openai:
        urls = {
            "OPENAI_API_BASE": openai.enter_context(upstream("openai", key=KEY)).url,
            "ANTHROPIC_API_BASE": stack.enter_context(upstream("anthropic", key=KEY)).url[:-3],
            "VLLM_URL": stack.enter_context(upstream("vllm")).url,
        }
        flags = ("--catalog", str(catalog), "--fallback", "overload")
        server = stack.enter_context(serving(folder / "store.sqlite", *flags))
        settings = {
            "LITELLM_MODELSAT_SERVER": server.address,
            "LITELLM_MODELSAT_TIMEOUT_MS": "2000",
        }
        keys = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
        to = stack.enter_context(proxy(folder, urls | keys | settings, config))
        ask(to, 0)  # the first request of a proxy is slow
        send = partial(ask, to)
        return [
            during("all is well", send, seconds),
            during("an upstream is killed", send, seconds, openai.close),
            during("modelsat is killed", send, seconds, server.kill),
        ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.exit(report(play(Path(name))))
