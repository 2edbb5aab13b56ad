"""Overload a server with three times its capacity: goodput, rejections, recovery.

    python -m tests.reliability.overload [--seconds 120] [--times 3] [--deadline 1.0] [--together]

Starts a server with the score cache off. Capacity is the throughput of a closed loop whose callers
fill the server's batches, before or after the overload, whichever is higher. The load generator has
the last core to itself and the server the others, as callers run on other machines; --together lets
both use every core. The report includes the generator's processor time. All instructions have one
length: of mixed lengths the short ones are admitted more often, which would inflate the goodput.
The last line of stdout is one JSON object with `targets`, which is also written to
bench/results/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.latency import texts
from bench.load_generator import Generator, LoadResult
from bench.report import Target, environment, finish
from tools.processes import Server, serving

CALLERS = 64  # of the closed loop, enough to fill every batch
CAPACITY_S, NORMAL_S, PAUSE_S = 20.0, 20.0, 2.0
LONG_TIMEOUT_S = 60.0
REJECTED = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
Phases = dict[str, LoadResult]


async def run(server: Server, seconds: float, times: float, deadline_s: float) -> Phases:
    """Return phase -> load result: capacity, normal, overload, recovery, capacity again."""
    instructions, phases = texts(1000, 4), Phases()
    async with (
        Generator(server.address, instructions, LONG_TIMEOUT_S) as patient,
        Generator(server.address, instructions, deadline_s) as impatient,
    ):
        await patient.closed_loop(CALLERS, 5.0)
        phases["capacity"] = await patient.closed_loop(CALLERS, CAPACITY_S)
        capacity = phases["capacity"].per_second()
        phases["normal"] = await impatient.open_loop(capacity / 2, NORMAL_S, even=True)
        phases["overload"] = await impatient.open_loop(times * capacity, seconds)
        # The open loop ends with its last call, at most a deadline after the last arrival.
        await asyncio.sleep(max(0.0, PAUSE_S - deadline_s))
        phases["recovery"] = await impatient.open_loop(capacity / 2, NORMAL_S, even=True)
        phases["capacity again"] = await patient.closed_loop(CALLERS, CAPACITY_S)
    return phases


def targets_of(phases: Mapping[str, LoadResult], times: float) -> list[Target]:
    """Compare the results with the targets."""
    capacity = max(phases["capacity"].per_second(), phases["capacity again"].per_second())
    normal, after = phases["normal"].answered_ms(), phases["recovery"].answered_ms()
    codes = phases["overload"].codes()
    unexpected = sum(n for code, n in codes.items() if code not in ("OK", *REJECTED))
    failed = len(phases["recovery"].code) - len(after)
    ratio = float(np.percentile(after, 99) / np.median(normal)) if len(after) else None
    goodput = phases["overload"].per_second() / capacity
    return [
        Target(f"goodput at {times:g} times the capacity / capacity", goodput, ">= 0.9"),
        Target(f"calls rejected with other codes than {', '.join(REJECTED)}", unexpected, "<= 0"),
        Target("failed calls after a pause of 2 s, at half the capacity", failed, "<= 0"),
        Target("p99 of those calls / normal p50", ratio, "<= 2", "no call succeeded"),
    ]


def table(phases: Mapping[str, LoadResult]) -> str:
    """Format the phases as a table."""
    lines = [f"{'':18}{'calls':>8}{'per s':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'cores':>7}  codes"]
    for name, calls in phases.items():
        s: dict[str, Any] = calls.summary()
        times = "".join(f"{s.get(f'p{q}_ms', float('nan')):8.1f}" for q in (50, 95, 99))
        lines.append(
            f"{name:18}{s['calls']:8}{s['per_second']:8.1f}{times}{s['generator_cores']:7.2f}"
            f"  {s['codes']}"
        )
    return "\n".join(lines) + "\ntimes in ms; cores: used by the load generator"


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="duration of the overload (default 120)"
    )
    parser.add_argument(
        "--times", type=float, default=3.0, help="load as a multiple of the capacity (default 3)"
    )
    parser.add_argument(
        "--deadline", type=float, default=1.0, help="deadline of a call in seconds (default 1)"
    )
    parser.add_argument("--together", action="store_true", help="generator and server share cores")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    apart = not options.together and len(cores) > 1
    described = environment(
        seconds=options.seconds,
        times=options.times,
        deadline_s=options.deadline,
        callers=CALLERS,
        server_cores_available=len(cores) - apart,
    )
    if apart:
        os.sched_setaffinity(0, cores[:-1])  # inherited by the server
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "0") as server,
    ):
        os.sched_setaffinity(0, cores[-1:] if apart else cores)
        phases = asyncio.run(run(server, options.seconds, options.times, options.deadline))
        described["server_cores_used"] = server.cpu_s() / sum(c.seconds for c in phases.values())
    print(table(phases))
    result = {"environment": described, "phases": {n: c.summary() for n, c in phases.items()}}
    return finish("overload", result, targets_of(phases, options.times))


if __name__ == "__main__":
    sys.exit(main())
