"""A real Envoy, a real server, two fake upstreams; curl shows who is chosen, and why.

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
    """Ask by curl, print command and choice; what was chosen, and who answered."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]})
    command = ["curl", "-s", f"http://127.0.0.1:{port}{CHAT}", "-d", body]
    for header in ("content-type: application/json", *headers):
        command += ["-H", header]
    print("$ " + shlex.join(command).replace("-s ", "", 1))
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    told = json.loads(done.stdout)
    if "error" in told:
        print(f"  error: {told['error']['message']}\n")
        return {"error": told["error"]["code"]}
    print(f"  model {told['model']}, answered by the upstream `{told['upstream']}`\n")
    return {"model": told["model"], "upstream": told["upstream"]}


def main() -> int:
    """Run the demo; 1 where something went another way than it should."""
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
        print("The alias `auto`: the highest probability decides.")
        best = curl(port, "auto", HARD)
        print("Cost counts as well:")
        cheap = curl(port, "auto", HARD, "x-modelsat-cost-sensitivity: 5")
        print("Only these may be chosen:")
        allowed = curl(
            port, "auto", HARD, "x-modelsat-allowed-candidates: yi-6b-chat,qwen1.5-7b-chat"
        )
        print("A model asked for by name is left alone, and a forged header is stripped:")
        named = curl(port, "yi-6b-chat", "Hi", "x-selected-model: jamba-1.5-large")
        print("Wrong wishes are refused:")
        refused = curl(port, "auto", "Hi", "x-modelsat-allowed-candidates: nobody")
        server.kill()
        print("The router is killed; requests go on by the default route:")
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
        print("error: a choice is not as it should be", file=sys.stderr)
    return int(not expected)


if __name__ == "__main__":
    sys.exit(main())
