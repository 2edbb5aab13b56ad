"""What the console computes of recent decisions: groups of similar instructions, and shifts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adaptation.recent_decisions import RecentDecision, RecentDecisions
from engine.adaptation.source import FitRecord, Neighbor
from engine.api.candidate import Candidate
from engine.registry.table import make_table
from engine.serving.console.learning import clusters, curve_view, region_view, regions
from tests.support.fake_adaptation import FIGURES, FakeAdaptation

WIDTH = 8
TABLE = make_table(1, [(Candidate(name, ()), np.ones(WIDTH, np.float32)) for name in "abc"], WIDTH)


def decisions(kinds: list[int], seed: int = 0) -> list[RecentDecision]:
    """Return a decision for each kind, whose instructions point into a direction of that kind."""
    recent, rng = RecentDecisions("weights", 1 << 24, 60.0), np.random.default_rng(seed)
    p = np.array([0.7, 0.5, 0.3], dtype=np.float32)
    for i, kind in enumerate(kinds):
        embedding = 10 * np.eye(WIDTH)[kind] + rng.normal(size=WIDTH) / 4 + 100
        scored = recent.scored(TABLE, np.arange(3), p, embedding.astype(np.float32), "a")
        recent.add(f"{i:032}", "", scored)
    return recent.latest(len(kinds))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(0, 9))
def test_instructions_of_a_kind_share_a_group(kinds: list[int], seed: int) -> None:
    embeddings = np.stack([d.scored.embedding for d in decisions(kinds, seed)]).astype(np.float32)
    groups = clusters(embeddings, len(set(kinds)))
    assert sorted(i for group in groups for i in group) == list(range(len(kinds)))
    newest_first = kinds[::-1]
    assert len(groups) == len(set(kinds))
    assert all(len({newest_first[i] for i in group}) == 1 for group in groups)


def test_a_region_says_how_far_and_for_which_candidates_the_adaptation_moves() -> None:
    found = regions(decisions([0, 1] * 20), FakeAdaptation({"a": -2.0, "c": 0.1}), TABLE)
    assert sum(region.decisions for region in found) == 40
    first = found[0]
    assert first.changed == 1.0, "b is better than a now"
    assert next(iter(first.candidates)) == "a"
    before, after = first.candidates["a"]
    assert before == pytest.approx(0.7, abs=1e-3)
    assert after == pytest.approx(0.24, abs=1e-2)
    neighbors = [Neighbor(0.9, {"a": 0.0}, category, 0.0, "chosen") for category in ("sql", "")]
    view = region_view(first, neighbors)
    assert view["categories"] == ["sql"]
    assert view["candidates"][0] == {"candidate": "a", "before": before, "after": after}
    far = regions(decisions([0, 1] * 20), FakeAdaptation(coverage=0.0), TABLE)[0]
    assert region_view(far, neighbors)["categories"] == [], "what is near is not near enough"
    assert regions(decisions([0, 1]), FakeAdaptation(), TABLE) == [], (
        "too few to tell regions apart"
    )


def test_the_learning_curve_begins_with_the_oldest_fit() -> None:
    fits = [FitRecord(name, True, "", FIGURES) for name in ("second", "first")]
    assert [point["id"] for point in curve_view(fits)] == ["first", "second"]
