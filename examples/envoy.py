"""Route requests through Envoy, a modelsat server and two fake upstreams, and show the choices.

make demo-envoy
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.envoy import envoy
from tools.fake_upstream import upstream
from tools.processes import serving

CHAT = "/v1/chat/completions"
HARD = "Prove that there are infinitely many primes congruent to 3 modulo 4."


def curl(port: int, model: str, text: str, *headers: str) -> dict[str, str]:
    """Send a chat completion with curl; print and return the chosen model and its upstream."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]})
    command = ["curl", "-s", f"http://127.0.0.1:{port}{CHAT}", "-d", body]
    for header in ("content-type: application/json", *headers):
        command += ["-H", header]
    print("$ " + shlex.join(command).replace("-s ", "", 1))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    reply = json.loads(done.stdout)
    if "error" in reply:
        print(f"  error: {reply['error']['message']}\n")
        return {"error": reply["error"]["code"]}
    print(f"  model {reply['model']}, answered by the upstream `{reply['upstream']}`\n")
    return {"model": reply["model"], "upstream": reply["upstream"]}


def main() -> int:
    """Run the demo; returns 1 if a choice was unexpected."""
    with (
        tempfile.TemporaryDirectory() as name,
        upstream("large") as large,
        upstream("small") as small,
        serving(Path(name) / "candidates.sqlite", "--extproc-address", "127.0.0.1:0") as server,
        envoy(Path(name), server, large, small) as running,
    ):
        print(server.printed().splitlines()[-1])
        print(f"Envoy on 127.0.0.1:{running.port}, deploy/envoy/envoy.yaml\n")
        port = running.port
        print("The alias `auto`: the candidate with the highest probability is chosen.")
        best = curl(port, "auto", HARD)
        print("At a cent per success, a cheaper candidate is chosen:")
        cheap = curl(port, "auto", HARD, "x-modelsat-willingness-to-pay-usd: 0.01")
        print("Only two candidates are allowed:")
        allowed = curl(
            port, "auto", HARD, "x-modelsat-allowed-candidates: yi-6b-chat,qwen1.5-7b-chat"
        )
        print("A model named by the client is not changed, and a forged header is removed:")
        named = curl(port, "yi-6b-chat", "Hi", "x-selected-model: jamba-1.5-large")
        print("An invalid override is rejected:")
        refused = curl(port, "auto", "Hi", "x-modelsat-allowed-candidates: no-such-model")
        server.kill()
        print("The router is killed; requests take the default route:")
        default = curl(port, "auto", HARD)
        print("Envoy's access log:")
        print("\n".join(x for x in running.log.read_text().splitlines() if x.startswith("POST")))
    expected = (
        best["upstream"] == "large"
        and cheap["upstream"] == "small"
        and allowed["model"] in ("yi-6b-chat", "qwen1.5-7b-chat")
        and named == {"model": "yi-6b-chat", "upstream": "small"}
        and refused == {"error": "invalid_input"}
        and default == {"model": "auto", "upstream": "small"}
    )
    if not expected:
        print("error: a choice was unexpected", file=sys.stderr)
    return int(not expected)


if __name__ == "__main__":
    sys.exit(main())
