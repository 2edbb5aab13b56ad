"""Restart three replicas behind a client-side balancer one after the other, under load.

    python -m tests.reliability.rolling_restart [--rounds 2] [--rate 20]

Each replica has its own store and port. The client is configured as a gateway would be, by service
config: round_robin over a static list, health checks, and retries on UNAVAILABLE. A replica gets
SIGTERM and is started again on its port when it has ended; the next one follows once it is ready.
Target: no call fails. The last line of stdout is one JSON object with `targets`, which is also
written to bench/results/rolling.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from bench.latency import texts
from bench.load_generator import Generator, LoadResult
from bench.report import Target, environment, finish
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
    # Reconnect soon to a replica that is back: by default the channel backs off to 2 minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def start(folder: Path, number: int, port: int) -> Server:
    """Start replica `number` with one inference thread, because all replicas share the cores."""
    store = folder / str(number) / "candidates.sqlite"
    store.parent.mkdir(exist_ok=True)
    server = launch(store, "--score-cache-mb", "0", "--inference-threads", "1", port=port)
    return await_ready(server)


async def restart_all(
    folder: Path, servers: list[Server], ports: list[int], rounds: int
) -> list[float]:
    """Restart every replica `rounds` times; return the seconds from SIGTERM to ready of each."""
    loop, durations = asyncio.get_running_loop(), []
    for number in [*range(len(servers))] * rounds:
        await asyncio.sleep(BETWEEN_S)
        started = loop.time()
        await asyncio.to_thread(servers[number].terminate)
        servers[number] = await asyncio.to_thread(start, folder, number, ports[number])
        durations.append(loop.time() - started)
    await asyncio.sleep(BETWEEN_S)
    return durations


async def run(
    folder: Path, servers: list[Server], ports: list[int], rounds: int, rate: float
) -> tuple[LoadResult, list[float]]:
    """Send `rate` calls a second until all restarts are done; return them and the restarts."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    result = LoadResult()
    async with Generator(target, texts(1000, 1), TIMEOUT_S, OPTIONS) as generator:
        await generator.open_loop(rate, 3.0)
        restarts = asyncio.create_task(restart_all(folder, servers, ports, rounds))
        while not restarts.done():
            result.extend(await generator.open_loop(rate, 2.0, seed=len(result.code)))
        return result, await restarts


def main() -> int:
    """Measure and print; return 1 if a call failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=2, help="restarts of each replica (default 2)"
    )
    parser.add_argument("--rate", type=float, default=20.0, help="calls per second (default 20)")
    options = parser.parse_args()
    ports, servers = [free_port() for _ in range(REPLICAS)], list[Server]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            servers += [start(folder, i, port) for i, port in enumerate(ports)]
            calls, durations = asyncio.run(
                run(folder, servers, ports, options.rounds, options.rate)
            )
        finally:
            for server in servers:
                if server.process.poll() is None:
                    server.kill()
    failed = sum(code != "OK" for code in calls.code)
    summary = calls.summary()
    print(
        f"{len(calls.code)} calls during {len(durations)} restarts of {min(durations):.1f} to"
        f" {max(durations):.1f} s: {summary['codes']}; p50 {summary['p50_ms']:.1f} ms, p99"
        f" {summary['p99_ms']:.1f} ms"
    )
    result = {
        "environment": environment(rounds=options.rounds, rate=options.rate, replicas=REPLICAS),
        "calls": summary,
        "restarts_s": durations,
    }
    return finish("rolling", result, [Target("failed calls", failed, "<= 0")])


if __name__ == "__main__":
    sys.exit(main())
