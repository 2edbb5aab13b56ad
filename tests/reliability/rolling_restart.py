"""Three replicas behind a client-side balancer are restarted one after the other, under load.

    python -m tests.reliability.rolling_restart [--rounds 2] [--rate 20]

Each replica has a store and a port of its own. The caller is what a gateway would have: round_robin
over a static list, health checking, and a retry on UNAVAILABLE, all by service config. A replica is
sent SIGTERM, and started again on its port when it has ended; the next one follows when it is
ready. Target: no call fails. The last line on stdout is one JSON object with `targets`; writes
bench/results/rolling.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from bench.latency import texts
from bench.load_generator import Calls, Generator
from bench.report import Target, conditions, finish
from tools.processes import Server, await_ready, free_port, launch

REPLICAS, BETWEEN_S, TIMEOUT_S = 3, 3.0, 10.0
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "modelsat.v1.RouterService"},
        "methodConfig": [
            {
                "name": [{"service": "modelsat.v1.RouterService"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)
OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    # How long a replica that was away stays away: by default the channel backs off to 2 minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def start(folder: Path, number: int, port: int) -> Server:
    """Replica `number`; one thread, because all of them share the cores."""
    store = folder / str(number) / "candidates.sqlite"
    store.parent.mkdir(exist_ok=True)
    server = launch(store, "--score-cache-mb", "0", "--inference-threads", "1", port=port)
    return await_ready(server)


async def restart_all(
    folder: Path, servers: list[Server], ports: list[int], rounds: int
) -> list[float]:
    """Seconds that each restart took, from SIGTERM to ready."""
    loop, took = asyncio.get_running_loop(), []
    for number in [*range(len(servers))] * rounds:
        await asyncio.sleep(BETWEEN_S)
        begun = loop.time()
        await asyncio.to_thread(servers[number].terminate)
        servers[number] = await asyncio.to_thread(start, folder, number, ports[number])
        took.append(loop.time() - begun)
    await asyncio.sleep(BETWEEN_S)
    return took


async def run(
    folder: Path, servers: list[Server], ports: list[int], rounds: int, rate: float
) -> tuple[Calls, list[float]]:
    """Load until all restarts are done."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    seen = Calls()
    async with Generator(target, texts(1000, 1), TIMEOUT_S, OPTIONS) as generator:
        await generator.pour(rate, 3.0)
        restarts = asyncio.create_task(restart_all(folder, servers, ports, rounds))
        while not restarts.done():
            seen.extend(await generator.pour(rate, 2.0, seed=len(seen.code)))
        return seen, await restarts


def main() -> int:
    """Measure, print; 1 where a call failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="restarts of each replica")
    parser.add_argument("--rate", type=float, default=20.0, help="calls a second")
    a = parser.parse_args()
    ports, servers = [free_port() for _ in range(REPLICAS)], list[Server]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            servers += [start(folder, i, port) for i, port in enumerate(ports)]
            seen, took = asyncio.run(run(folder, servers, ports, a.rounds, a.rate))
        finally:
            for server in servers:
                if server.process.poll() is None:
                    server.kill()
    failed = sum(code != "OK" for code in seen.code)
    s = seen.summary()
    print(
        f"{len(seen.code)} calls beside {len(took)} restarts of {min(took):.1f} to {max(took):.1f}"
        f" s: {s['codes']}; p50 {s['p50_ms']:.1f} ms, p99 {s['p99_ms']:.1f} ms"
    )
    described = conditions(rounds=a.rounds, rate=a.rate, replicas=REPLICAS)
    result = {"conditions": described, "calls": s, "restarts_s": took}
    return finish("rolling", result, [Target("failed calls", failed, "<= 0")])


if __name__ == "__main__":
    sys.exit(main())
