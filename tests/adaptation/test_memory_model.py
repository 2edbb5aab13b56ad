"""The store does what a dictionary would do, whatever is recorded, and survives being killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.errors import AlreadyExistsError
from engine.registry.stores.outcome_types import OutcomeLimits
from engine.registry.stores.outcomes import read_recorded
from tests.support.replicas import Replica, embedding
from tools.processes import ROOT

NAMES, PRINCIPALS = ("a", "bb", "ccc"), ("", "p", "q")
REPORT = st.tuples(
    st.integers(0, 5),
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.3, 1.0]), min_size=1),
    st.sampled_from(PRINCIPALS),
)


@dataclass
class Model:
    """Outcomes and vectors as plain values, in the order in which they were recorded.

    reports: (instruction, scores, principal). vectors: instruction -> principal, of those that
    have them. known: instructions that are recorded.
    """

    limit: int
    instructions: int
    reports: list[tuple[int, dict[str, float], str]] = field(default_factory=list)
    vectors: dict[int, str] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    def scores(self, seed: int) -> dict[str, float]:
        return {n: s for i, scores, _ in self.reports if i == seed for n, s in scores.items()}

    def record(self, seed: int, scores: dict[str, float], principal: str) -> int | str:
        known = self.scores(seed)
        if any(known.get(name, score) != score for name, score in scores.items()):
            return "conflict"
        new = {name: score for name, score in scores.items() if name not in known}
        if not new:
            return 0
        if seed not in self.owners:
            self.owners[seed] = self.vectors[seed] = principal
        self.reports.append((seed, new, principal))
        self._bound()
        return len(new)

    def _bound(self) -> None:
        while (counts := self._counts()).total() > self.limit:
            most = largest(counts)
            rest = [n for p, n in counts.items() if p != most]
            excess = counts.total() - self.limit
            remove = min(excess, max(1, counts[most] - max(rest, default=0)))
            while remove > 0:
                place = next(i for i, r in enumerate(self.reports) if r[2] == most)
                remove -= len(self.reports.pop(place)[1])
            for seed in set(self.owners) - {r[0] for r in self.reports}:
                del self.owners[seed]
                self.vectors.pop(seed, None)
        while len(self.vectors) > self.instructions:
            most = largest(Counter(self.vectors.values()))
            del self.vectors[next(s for s, p in self.vectors.items() if p == most)]

    def _counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for _, scores, principal in self.reports:
            counts[principal] += len(scores)
        return counts


def largest(counts: Counter[str]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


@settings(max_examples=60, deadline=None)
@given(st.lists(REPORT, max_size=25), st.integers(3, 12), st.integers(1, 4), st.integers(0, 9))
def test_the_store_is_a_bounded_dictionary(
    reports: list[tuple[int, dict[str, float], str]], limit: int, instructions: int, every: int
) -> None:
    """One reader follows step by step, one reads at the end; both see what the model holds."""
    model = Model(limit, instructions)

    async def scenario(path: Path) -> None:
        writer = Replica(path, OutcomeLimits(limit, instructions=instructions))
        follower = Replica(path)
        for step, (seed, scores, principal) in enumerate(reports):
            expected = model.record(seed, scores, principal)
            try:
                answer: int | str = await writer.record(seed, scores, principal=principal)
            except AlreadyExistsError:
                answer = "conflict"
            assert answer == expected
            if every and step % every == 0:
                await follower.source.refresh()
        recorded = [(r.decision_id, r.candidate, r.score, r.principal) for r in read_recorded(path)]
        assert sorted(recorded) == sorted(
            (f"{seed:032x}", name, score, principal)
            for seed, scores, principal in model.reports
            for name, score in scores.items()
        )
        for reader in (follower, Replica(path)):
            await reader.source.refresh()
            current = reader.source.current()
            if current is None:
                assert not model.vectors
            else:
                matrix = reader.fits.matrices[current.id]
                assert len(matrix) == len(model.vectors)
                assert matrix.principals == tuple(model.owners[s] for s in model.vectors)
                for row, seed in zip(matrix.embeddings, model.vectors, strict=True):
                    assert abs(row - embedding(seed)).max() < 1e-2
            await reader.close()
        await writer.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder) / "o.sqlite"))


RECORDER = """
import asyncio, sys
from pathlib import Path
from tests.support.replicas import Replica

async def main():
    replica = Replica(Path(sys.argv[1]))
    await replica.source.start()
    async def record(first):
        for seed in range(first, 10**6, 8):
            await replica.record(seed, {"a": seed % 2, "bb": 1.0})
            print(seed, flush=True)
    await asyncio.gather(*(record(i) for i in range(8)))

asyncio.run(main())
"""


async def test_a_killed_server_has_lost_no_acknowledged_outcome(tmp_path: Path) -> None:
    """It is killed while it records and fits; what is read afterwards gives one fit."""
    path, acknowledged = tmp_path / "o.sqlite", set()
    for _ in range(3):
        command = [sys.executable, "-c", RECORDER, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            until = time.monotonic() + 20
            for line in process.stdout:
                acknowledged.add(int(line))
                if len(acknowledged) % 100 == 99 or time.monotonic() > until:
                    break
            process.send_signal(signal.SIGKILL)
            acknowledged |= {int(line) for line in process.stdout}
    recorded = {int(r.decision_id, 16) for r in read_recorded(path)}
    assert acknowledged
    assert acknowledged <= recorded
    fits = []
    for _ in range(2):
        replica = Replica(path)
        fits.append((await replica.matrix()).id)
        await replica.close()
    assert fits[0] == fits[1]
