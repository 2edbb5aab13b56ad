"""Route requests through a LiteLLM proxy, a modelsat server and three fake upstreams.

make demo-litellm
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from engine.registry.catalog import read_catalog
from examples.hot_swap import MATHEMATICS, NEWCOMER, OTHERS
from modelsat import Client
from tools.fake_upstream import upstream
from tools.litellm_proxy import Proxy, proxy
from tools.processes import serving

MODELS = ("calculus-tutor", "gemini-1.5-pro-002", "llama-3.1-8b-instruct")
CHOICE_HEADERS = ("x-selected-model", "x-modelsat-")


def curl(to: Proxy, text: str, *, stream: bool = False) -> str:
    """Ask for the model `auto` with curl; print the headers of the choice, return who answered."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": stream}
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--include"]
    command += [f"{to.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {to.key}", "-d", json.dumps(body)]
    start = time.monotonic()
    reply = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    elapsed_ms = 1000 * (time.monotonic() - start)
    print(f"\n  {text}{'  (streamed)' if stream else ''}")
    for line in reply.splitlines():
        if line.startswith(CHOICE_HEADERS):
            print(f"    {line}")
    answered = next((model for model in MODELS if f'"content":"{model}' in reply), "no model")
    print(f"    answered by {answered}, {elapsed_ms:.0f} ms")
    return answered


def main() -> int:
    """Run the demo; returns 1 if a request went to an unexpected model."""
    (tutor,) = read_catalog(NEWCOMER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstreams = [stack.enter_context(upstream(model)) for model in MODELS]
        server = stack.enter_context(serving(folder / "candidates.sqlite"))
        print(server.printed().splitlines()[-1])
        settings = {f"UPSTREAM_{x}": u.url for x, u in zip("ABC", upstreams, strict=True)}
        settings |= {"UPSTREAM_KEY": "none", "LITELLM_MODELSAT_SERVER": server.address}
        settings["LITELLM_MODELSAT_TIMEOUT_MS"] = "1000"  # a demo may share its machine
        litellm = stack.enter_context(proxy(folder, settings))
        print(f"LiteLLM at {litellm.url}, with {', '.join(MODELS)} and the alias auto")
        curl(litellm, MATHEMATICS[0])  # the first request of a proxy is slow
        print(f"\n{tutor.id} is registered at the router:")
        with Client(server.address) as client:
            client.create_candidate(tutor)
        as_expected = [curl(litellm, text) == tutor.id for text in MATHEMATICS]
        as_expected.append(curl(litellm, MATHEMATICS[0], stream=True) == tutor.id)
        as_expected += [curl(litellm, text) != tutor.id for text in OTHERS]
        print("\nThe router is killed:")
        server.kill()
        as_expected.append(curl(litellm, MATHEMATICS[0]) == MODELS[-1])
    if not all(as_expected):
        print(f"error: not as expected: {as_expected}", file=sys.stderr)
        return 1
    print("\nEvery request went where it should.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
