"""A real LiteLLM proxy before three fake upstreams; modelsat chooses which of them answers.

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
SHOWN = ("x-selected-model", "x-modelsat-")


def curl(at: Proxy, text: str, *, stream: bool = False) -> str:
    """Ask for `auto` with curl, print what tells the choice; who answered."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": stream}
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--include"]
    command += [f"{at.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {at.key}", "-d", json.dumps(body)]
    begun = time.monotonic()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took = 1000 * (time.monotonic() - begun)
    print(f"\n  {text}{'  (streamed)' if stream else ''}")
    for line in said.splitlines():
        if line.startswith(SHOWN):
            print(f"    {line}")
    answered = next((model for model in MODELS if f'"content":"{model}' in said), "nobody")
    print(f"    answered by {answered}, {took:.0f} ms")
    return answered


def main() -> int:
    """Run the demo; 1 where a request went to another model than expected."""
    (tutor,) = read_catalog(NEWCOMER)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstreams = [stack.enter_context(upstream(model)) for model in MODELS]
        server = stack.enter_context(serving(folder / "candidates.sqlite"))
        print(server.printed().splitlines()[-1])
        settings = {f"UPSTREAM_{x}": u.url for x, u in zip("ABC", upstreams, strict=True)}
        settings |= {"UPSTREAM_KEY": "none", "LITELLM_MODELSAT_SERVER": server.address}
        settings["LITELLM_MODELSAT_TIMEOUT_MS"] = "1000"  # a demo may share its machine
        at = stack.enter_context(proxy(folder, settings))
        print(f"LiteLLM at {at.url}, with {', '.join(MODELS)} and the alias auto")
        curl(at, MATHEMATICS[0])  # the first request of a proxy is slow
        print(f"\n{tutor.id} is registered at the router:")
        with Client(server.address) as client:
            client.create_candidate(tutor)
        placed = [curl(at, text) == tutor.id for text in MATHEMATICS]
        placed.append(curl(at, MATHEMATICS[0], stream=True) == tutor.id)
        placed += [curl(at, text) != tutor.id for text in OTHERS]
        print("\nThe router is killed:")
        server.kill()
        placed.append(curl(at, MATHEMATICS[0]) == MODELS[-1])
    if not all(placed):
        print(f"error: not as expected: {placed}", file=sys.stderr)
        return 1
    print("\nEvery request went where it should.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
