"""Measure how soon three replicas serve the same fit after outcomes are acknowledged.

    python -m bench.fleet_memory --database postgresql://... [--rounds 10]

Starts three servers that share an empty database. In each round, one of them after another records
a comparison of a text that the fleet has not seen; the clock starts when the last one is
acknowledged, and stops when all three serve one fit of every instruction. A round of more than 5 s
makes the exit status 1. The last line of stdout is one JSON object, with times in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.report import Target, environment
from modelsat import Client
from tools.processes import await_ready, launch

REPLICAS, LIMIT_S, GIVE_UP_S, POLL_S = 3, 5.0, 60.0, 0.02


def seconds_until_equal(clients: Sequence[Client], instructions: int) -> float:
    """Return the seconds until all serve one fit of that many instructions; infinity if never."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < GIVE_UP_S:
        fits = {(fit.id, fit.instructions) for fit in (c.adaptation() for c in clients)}
        if len(fits) == 1 and fits.pop()[1] == instructions:
            return passed
        time.sleep(POLL_S)
    return float("inf")


def measure(database: str, rounds: int) -> list[float]:
    """Return the seconds of each round."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for i in range(REPLICAS):
            (folder / str(i)).mkdir()
            flags = ("--candidates-db", database, "--outcomes-db", database)
            servers.append(launch(folder / str(i) / "store.sqlite", *flags))
            stack.callback(servers[-1].kill)
        addresses = [await_ready(server).address for server in servers]
        clients = [stack.enter_context(Client(each, timeout_s=30)) for each in addresses]
        names = [candidate.id for candidate in clients[0].list_candidates()]
        times = []
        for i in range(rounds):
            for j, client in enumerate(clients):
                scores = {name: float((i + j + len(name)) % 3 > 0) for name in names}
                client.record_comparison(scores, text=f"How many are {i} of {j + 7} pears?")
            times.append(seconds_until_equal(clients, REPLICAS * (i + 1)))
        return times


def main() -> None:
    """Measure, print, and exit with 1 if a round took too long."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", required=True, help="URL of an empty PostgreSQL database")
    parser.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    parsed = parser.parse_args()
    times = measure(parsed.database, parsed.rounds)
    target = Target("all replicas serve one fit, slowest round (s)", max(times), f"<= {LIMIT_S:g}")
    print(f"{target.name}: {target.value:.2f}, {target.bound}; median {np.median(times):.2f}")
    print(json.dumps({"environment": environment(), "seconds": times}))
    sys.exit(not target.verdict)


if __name__ == "__main__":
    main()
