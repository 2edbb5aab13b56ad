"""Measure a server on a device: 1, 8 and 64 connections, and candidates that change under load.

python -m bench.gpu.server DEVICE BUNDLE OUT.json [--seconds 6]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.parts import LIBRARIES, Parts
from bench.latency import texts
from bench.load_generator import Generator, closed_loop
from engine.api.candidate import TaskResult
from modelsat import Client
from tools.processes import Server, await_ready, launch

CONNECTIONS, SENTENCES = (1, 8, 64), 4
# Lets a test serve with fakes of CUDA and TensorRT.
WITH_LIBRARIES = """
import importlib, sys
import engine.inference.devices as devices
devices.find_libraries = importlib.import_module({module!r}).find_libraries
sys.argv[1:3] = []
from engine.cli.main import main
sys.exit(main())
"""


@contextmanager
def serving_on(device: str, bundle: Path, module: str, folder: Path) -> Iterator[Server]:
    """Start a ready server on `device`, and stop it at the end."""
    python = () if module == LIBRARIES else ("-c", WITH_LIBRARIES.format(module=module))
    flags = ("--device", device, "--score-cache-mb", "0", "--max-queue-size", "4096")
    server = await_ready(launch(folder / "candidates.sqlite", *flags, bundle=bundle, python=python))
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()


async def load(address: str, connections: int, seconds: float) -> dict[str, Any]:
    """Return rate and percentiles of so many connections that each wait for their answer."""
    async with Generator(address, texts(300, SENTENCES), 30) as generator:
        return (await generator.closed_loop(connections, seconds)).summary()


def change_until(end: float, address: str) -> list[float]:
    """Change a candidate's figures again and again; return the milliseconds of each change."""
    times: list[float] = []
    with Client(address, 30) as client:
        candidate = client.list_candidates()[0]
        while time.monotonic() < end:
            level = 0.1 + 0.08 * (len(times) % 10)
            figures = tuple(TaskResult(r.task, level) for r in candidate.aptitude)
            before = time.monotonic()
            client.update_candidate(replace(candidate, aptitude=figures))
            times.append(1000 * (time.monotonic() - before))
            time.sleep(0.02)
    return times


async def swap(address: str, connections: int, seconds: float) -> dict[str, Any]:
    """Keep so many connections busy while a candidate changes."""
    end = time.monotonic() + seconds
    held, times = await asyncio.gather(
        load(address, connections, seconds), asyncio.to_thread(change_until, end, address)
    )
    return {"changes": len(times), "slowest_change_ms": max(times), **held}


def main() -> None:
    """Write OUT after each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=6.0, help="of all loads together")
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--libraries", default=LIBRARIES)
    options = parser.parse_args()
    parts, seconds = Parts(options.out), options.seconds / (len(options.connections) + 1)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_on(options.device, options.bundle, options.libraries, Path(folder)) as server,
    ):
        start_s = time.monotonic() - started
        address = server.address
        parts.add("start_s", lambda: start_s)
        asyncio.run(closed_loop(address, texts(5, SENTENCES), 1))
        some = texts(max(5, int(60 * seconds)), SENTENCES)
        alone = asyncio.run(closed_loop(address, some, 1)).summary()
        parts.add("phases", lambda: alone)
        middle = options.connections[len(options.connections) // 2]
        for number in options.connections:
            name = f"{number} connections"
            parts.add(name, lambda n=number: asyncio.run(load(address, n, seconds)))  # type: ignore[misc]
        parts.add("changes", lambda: asyncio.run(swap(address, middle, seconds)))
        parts.add("printed", lambda: server.printed()[-1500:])


if __name__ == "__main__":
    main()
