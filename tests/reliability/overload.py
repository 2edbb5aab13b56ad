"""What three times the capacity leaves of it: goodput, refusals, recovery.

    python -m tests.reliability.overload [--seconds 120] [--times 3] [--deadline 1.0] [--together]

A server of its own with the cache off. Capacity is what a closed loop reaches whose callers fill
the server's forwards, before or after the overload, whichever is more. The generator has the last
core to itself and the server the others, as callers have machines of their own; --together lets
both use every core. The report says what the generator took. All instructions are of one length: of
mixed ones the short are admitted more often, which would flatter the goodput. The last line on
stdout is one JSON object with `targets`; writes bench/results/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from bench.latency import texts
from bench.load_generator import Calls, Generator
from bench.report import Target, conditions, finish
from tools.processes import Server, serving

CALLERS = 64  # of the closed loop: the batcher always has enough to join
CAPACITY_S, NORMAL_S, PAUSE_S = 20.0, 20.0, 2.0
PATIENT_S = 60.0
REFUSALS = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
Phases = dict[str, Calls]


async def run(server: Server, seconds: float, times: float, deadline_s: float) -> Phases:
    """name -> what was seen: capacity, normal, overload, recovery, capacity again."""
    instructions, seen = texts(1000, 4), Phases()
    async with (
        Generator(server.address, instructions, PATIENT_S) as patient,
        Generator(server.address, instructions, deadline_s) as hurried,
    ):
        await patient.hold(CALLERS, 5.0)
        seen["capacity"] = await patient.hold(CALLERS, CAPACITY_S)
        capacity = seen["capacity"].per_second()
        seen["normal"] = await hurried.pour(capacity / 2, NORMAL_S, even=True)
        seen["overload"] = await hurried.pour(times * capacity, seconds)
        # pour() returned when its last call had ended: at most a deadline after the load stopped.
        await asyncio.sleep(max(0.0, PAUSE_S - deadline_s))
        seen["recovery"] = await hurried.pour(capacity / 2, NORMAL_S, even=True)
        seen["capacity again"] = await patient.hold(CALLERS, CAPACITY_S)
    return seen


def judge(seen: Mapping[str, Calls], times: float) -> list[Target]:
    """The targets of overload."""
    capacity = max(seen["capacity"].per_second(), seen["capacity again"].per_second())
    normal, after = seen["normal"].answered_ms(), seen["recovery"].answered_ms()
    strange = sum(n for c, n in seen["overload"].codes().items() if c not in ("OK", *REFUSALS))
    lost = len(seen["recovery"].code) - len(after)
    slow = float(np.percentile(after, 99) / np.median(normal)) if len(after) else None
    goodput = seen["overload"].per_second() / capacity
    return [
        Target(f"goodput at {times:g} times the capacity, of the capacity", goodput, ">= 0.9"),
        Target("refusals by another code than RESOURCE_EXHAUSTED and its like", strange, "<= 0"),
        Target("refused after a pause of 2 s, at half the capacity", lost, "<= 0"),
        Target("p99 of the calls then, beside the normal p50", slow, "<= 2", "none was answered"),
    ]


def table(seen: Mapping[str, Calls]) -> str:
    """For people."""
    lines = [f"{'':18}{'calls':>8}{'per s':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'cores':>7}  codes"]
    for name, calls in seen.items():
        s: dict[str, Any] = calls.summary()
        times = "".join(f"{s.get(f'p{q}_ms', float('nan')):8.1f}" for q in (50, 95, 99))
        lines.append(
            f"{name:18}{s['calls']:8}{s['per_second']:8.1f}{times}{s['generator_cores']:7.2f}"
            f"  {s['codes']}"
        )
    return "\n".join(lines) + "\ntimes in ms; cores: taken by the load generator"


def keep_to(cores: Set[int]) -> None:
    """This thread, and what it starts from now on."""
    os.sched_setaffinity(0, cores)


def main() -> int:
    """Measure, print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--times", type=float, default=3.0, help="the capacity")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds, of every call")
    parser.add_argument("--together", action="store_true", help="generator and server share cores")
    a = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    apart = not a.together and len(cores) > 1
    described = conditions(seconds=a.seconds, times=a.times, deadline_s=a.deadline, callers=CALLERS)
    described |= {"server_may_use": len(cores) - apart, "apart": apart}
    if apart:
        keep_to(set(cores[:-1]))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite", "--score-cache-mb", "0") as server,
    ):
        keep_to(set(cores[-1:] if apart else cores))
        seen = asyncio.run(run(server, a.seconds, a.times, a.deadline))
        described["server_cores"] = server.cpu_s() / sum(c.seconds for c in seen.values())
    print(table(seen))
    result = {"conditions": described, "phases": {n: c.summary() for n, c in seen.items()}}
    return finish("overload", result, judge(seen, a.times))


if __name__ == "__main__":
    sys.exit(main())
