"""kill -9 of a serving process in the middle of writes, again and again on one store.

A round: start on the store that the last one left, compare its table with every change that was
acknowledged, then create candidates and replace the whole table until the process is killed. What
was in flight may be there or not, but whole.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.api.candidate import Candidate
from engine.registry.catalog import read_catalog
from modelsat import Client, ModelsatClientError
from tools.processes import BUNDLE, Server, await_ready

CATALOG = read_catalog(BUNDLE / "zoo.json")
Launch = Callable[[], Server]
Content = dict[str, Candidate]


@dataclass
class Tally:
    """What the rounds saw. kept, dropped: changes in flight at the kill that were there afterwards
    or not. lost, partial: tables that were not what was acknowledged."""

    rounds: int = 0
    creates: int = 0
    replacements: int = 0
    killed_during: dict[str, int] = field(
        default_factory=lambda: {"create": 0, "replace": 0, "nothing": 0}
    )
    kept: int = 0
    dropped: int = 0
    lost: int = 0
    partial: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """acknowledged: the table that must be there; pending: the one that may be instead."""

    acknowledged: Content
    pending: Content | None = None
    replacing: bool = False


def kill_rounds(launches: list[Launch], seed: int) -> Tally:
    """One round for each of `launches`, all on one store; a last start compares once more."""
    rng = random.Random(seed)
    tally, state = Tally(), State({c.id: c for c in CATALOG})
    begun = time.monotonic()
    for number, launch in enumerate(launches):
        server = await_ready(launch())
        with Client(server.address, timeout_s=20) as client:
            _compare(client, state, tally)
            killer = threading.Timer(rng.uniform(0.01, 0.4), server.kill)
            killer.start()
            _write_until_killed(client, state, tally, rng, number)
            killer.join()
        tally.rounds += 1
    server = await_ready(launches[-1]())
    with Client(server.address, timeout_s=20) as client:
        _compare(client, state, tally)
    server.kill()
    tally.seconds = round(time.monotonic() - begun, 1)
    return tally


def _compare(client: Client, state: State, tally: Tally) -> None:
    found = {c.id: c for c in client.list_candidates()}
    if found == state.acknowledged:
        tally.dropped += state.pending is not None
    elif found == state.pending:
        tally.kept += 1
    elif state.replacing and state.pending is not None and _mixed(found, state):
        tally.partial += 1
    else:
        tally.lost += 1
    state.acknowledged, state.pending = found, None


def _mixed(found: Content, state: State) -> bool:
    """Whether all that is missing is explained by half of the replacement."""
    both = {**state.acknowledged, **(state.pending or {})}
    known = [*state.acknowledged.items(), *(state.pending or {}).items()]
    return set(found) <= set(both) and all(item in known for item in found.items())


def _write_until_killed(
    client: Client, state: State, tally: Tally, rng: random.Random, number: int
) -> None:
    for step in range(10**6):
        # The round and step tell every version of a candidate from every other.
        mark = {"context_window": number * 10**5 + step + 1}
        state.replacing = rng.random() < 0.3 or len(state.acknowledged) > 200
        if state.replacing:
            size = rng.randrange(3, 40)
            some = [
                replace(CATALOG[i % len(CATALOG)], id=f"batch-{i}", **mark) for i in range(size)
            ]
            state.pending = {c.id: c for c in some}
        else:
            one = replace(CATALOG[0], id=f"r{number}-{step}", **mark)
            state.pending = {**state.acknowledged, one.id: one}
        try:
            client.replace_candidates(some) if state.replacing else client.create_candidate(one)
        except ModelsatClientError as error:
            if error.code != "UNAVAILABLE":
                raise
            tally.killed_during["replace" if state.replacing else "create"] += 1
            return
        tally.replacements += state.replacing
        tally.creates += not state.replacing
        state.acknowledged, state.pending = state.pending, None


def folder_launches(store: str, folder: Path, rounds: int, whole: int) -> list[Launch]:
    """`rounds` starts on `store`, every (rounds / whole)th of the whole server, the others of the
    server without backbone."""
    from tests.support.admin_only_server import launch_light
    from tools.processes import launch

    def full() -> Server:
        return launch(folder / "x.sqlite", "--candidates-db", store)

    def light() -> Server:
        return launch_light(store, folder)

    every = max(1, rounds // whole) if whole else rounds + 1
    return [full if i % every == every - 1 else light for i in range(rounds)]
