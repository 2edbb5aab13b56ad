"""Kill a serving process with SIGKILL during writes, in many rounds on one store.

A round starts a server on the store as the last round left it, compares its candidates with every
acknowledged change, then creates candidates and replaces the whole table until the process is
killed. The change in flight may have been applied or not, but never in part.
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
from tests.support.admin_only_server import launch_admin_only
from tools.processes import BUNDLE, Server, await_ready, launch

CATALOG = read_catalog(BUNDLE / "zoo.json")
Launch = Callable[[], Server]
Content = dict[str, Candidate]


@dataclass
class Tally:
    """Results of all rounds.

    applied, dropped: changes in flight at the kill that were in the table afterwards, or not.
    lost, partial: tables that miss an acknowledged change, or hold a part of the one in flight.
    """

    rounds: int = 0
    creates: int = 0
    replacements: int = 0
    killed_during: dict[str, int] = field(
        default_factory=lambda: {"create": 0, "replace": 0, "nothing": 0}
    )
    applied: int = 0
    dropped: int = 0
    lost: int = 0
    partial: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """acknowledged: the table that is expected. pending: the table with the change in flight."""

    acknowledged: Content
    pending: Content | None = None
    replacing: bool = False


def kill_rounds(launches: list[Launch], seed: int) -> Tally:
    """Run one round for each of `launches`, all on one store, and compare once more at the end."""
    rng = random.Random(seed)
    tally, state = Tally(), State({c.id: c for c in CATALOG})
    started = time.monotonic()
    for number, start in enumerate(launches):
        server = await_ready(start())
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
    tally.seconds = round(time.monotonic() - started, 1)
    return tally


def _compare(client: Client, state: State, tally: Tally) -> None:
    listed = {c.id: c for c in client.list_candidates()}
    if listed == state.acknowledged:
        tally.dropped += state.pending is not None
    elif listed == state.pending:
        tally.applied += 1
    elif state.replacing and state.pending is not None and _mixed(listed, state):
        tally.partial += 1
    else:
        tally.lost += 1
    state.acknowledged, state.pending = listed, None


def _mixed(listed: Content, state: State) -> bool:
    """Return whether every candidate is from before or from after the replacement."""
    known = [*state.acknowledged.items(), *(state.pending or {}).items()]
    return all(item in known for item in listed.items())


def _write_until_killed(
    client: Client, state: State, tally: Tally, rng: random.Random, number: int
) -> None:
    for step in range(10**6):
        # Round and step make every version of a candidate different from every other.
        version = {"context_window": number * 10**5 + step + 1}
        state.replacing = rng.random() < 0.3 or len(state.acknowledged) > 200
        if state.replacing:
            size = rng.randrange(3, 40)
            batch = [
                replace(CATALOG[i % len(CATALOG)], id=f"batch-{i}", **version) for i in range(size)
            ]
            state.pending = {c.id: c for c in batch}
        else:
            one = replace(CATALOG[0], id=f"r{number}-{step}", **version)
            state.pending = {**state.acknowledged, one.id: one}
        try:
            client.replace_candidates(batch) if state.replacing else client.create_candidate(one)
        except ModelsatClientError as error:
            if error.code != "UNAVAILABLE":
                raise
            tally.killed_during["replace" if state.replacing else "create"] += 1
            return
        tally.replacements += state.replacing
        tally.creates += not state.replacing
        state.acknowledged, state.pending = state.pending, None


def server_launches(store: str, folder: Path, rounds: int, whole_server: int) -> list[Launch]:
    """Return `rounds` functions that start a server on `store`.

    whole_server: how many of them, evenly spread, start the whole server; the others start one
    that has CandidateService alone, which is ready a second sooner.
    """

    def whole() -> Server:
        return launch(folder / "x.sqlite", "--candidates-db", store)

    def admin_only() -> Server:
        return launch_admin_only(store, folder)

    every = max(1, rounds // whole_server) if whole_server else rounds + 1
    return [whole if i % every == every - 1 else admin_only for i in range(rounds)]
