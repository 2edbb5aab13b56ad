"""The match of instructions with the tasks of candidates' tests, on made places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.api.candidate import Candidate, TaskResult
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.task_places import TaskPlaces, from_arrays, normalized, to_arrays
from engine.bundle.types import Float32Array
from engine.registry.matching.deviations import shrunk_deviations
from engine.registry.matching.task_match import (
    FACTOR,
    LIFT,
    MAX_JOINED_TASKS,
    TaskMatch,
    add_log_odds,
    match_tasks,
)

P = 16
RANDOM = np.random.default_rng(0)
AXES = np.eye(P, dtype=np.float32)
SPACE = InstructionSpace(np.zeros(P, np.float32), AXES)
# Training instructions lie around the last axis, the tasks on others.
LANDMARKS = normalized(AXES[-1] + 0.1 * RANDOM.standard_normal((20, P)).astype(np.float32))
TASKS = ("chess", "poetry", "law", "sums", "known")
PLACE = dict(zip(TASKS, [*AXES[:4], LANDMARKS[0]], strict=True))
PLACES = TaskPlaces({}, np.zeros((4, P), np.float32), np.zeros(P, np.float32), LANDMARKS)


def candidate(name: str, accuracies: Sequence[float], tasks: Sequence[str] = TASKS) -> Candidate:
    results = [
        TaskResult(t, a, place=PLACES.pack(PLACE[t]))
        for t, a in zip(tasks, accuracies, strict=True)
    ]
    return Candidate(name, tuple(results))


def by_packed(
    tasks: Mapping[str, bytes], estimated: bool = False
) -> tuple[Float32Array, NDArray[np.bool_]]:
    places = [PLACES.unpack(content) for content in tasks.values()]
    return np.stack([p for p in places if p is not None]), np.full(len(tasks), estimated)


def match(*candidates: Candidate, estimated: bool = False) -> TaskMatch:
    return match_tasks(candidates, lambda tasks: by_packed(tasks, estimated), SPACE, PLACES)


PLAYER, POET = (
    candidate("player", (0.95, 0.2, 0.5, 0.6, 0.6)),
    candidate("poet", (0.2, 0.95, 0.5, 0.6, 0.6)),
)
CHESS, POEM, KNOWN = (5 * PLACE[name][None, :] for name in ("chess", "poetry", "known"))


def test_an_instruction_favors_who_is_good_at_the_task_that_it_is_near() -> None:
    found = match(PLAYER, POET)
    assert found.log_odds(CHESS)[0, 0] > 1 > -1 > found.log_odds(CHESS)[0, 1]
    assert found.log_odds(POEM)[0, 0] < -1 < 1 < found.log_odds(POEM)[0, 1]
    (nearest,) = found.nearest(CHESS[0], 0, 1)
    assert (nearest.task, nearest.by_questions) == ("chess", True)
    assert 0.9 < nearest.weight <= 1
    assert np.abs(found.log_odds(CHESS)).max() <= FACTOR


def test_an_order_of_tasks_or_candidates_changes_nothing() -> None:
    turned = candidate("player", (0.6, 0.6, 0.5, 0.2, 0.95), TASKS[::-1])
    expected = match(PLAYER, POET).log_odds(CHESS)
    assert match(turned, POET).log_odds(CHESS) == pytest.approx(expected, abs=2e-3)
    assert match(POET, PLAYER).log_odds(CHESS)[:, ::-1] == pytest.approx(expected, abs=2e-3)


def test_it_fades_for_tasks_that_training_held() -> None:
    strong = candidate("strong", (0.3, 0.3, 0.3, 0.3, 0.95))
    other = candidate("other", (0.95, 0.3, 0.3, 0.3, 0.3))
    found = match(strong, other)
    # What is left is common to both: the mean accuracy on the task is above .5.
    assert np.ptp(found.log_odds(KNOWN)[0]) < 0.05
    assert np.abs(found.log_odds(KNOWN)).max() < 0.1
    assert found.log_odds(CHESS)[0, 1] > 1


def test_it_fades_far_from_every_task_of_the_test() -> None:
    far = 5 * AXES[9][None, :]
    assert not match(PLAYER, POET).log_odds(far).any()
    assert not match(PLAYER, POET).log_odds(np.full((1, P), np.nan, np.float32)).any()


def test_estimated_places_fade_near_the_training_instructions_too() -> None:
    between = normalized(PLACE["chess"] + 1.2 * PLACE["known"])[None, :]
    assert match(PLAYER, POET).log_odds(between)[0, 0] > 0.4
    assert abs(match(PLAYER, POET, estimated=True).log_odds(between)[0, 0]) < 0.05


def test_candidates_without_a_test_or_with_another_one_do_not_disturb_others() -> None:
    bare, single = Candidate("bare", ()), candidate("single", (0.9,), TASKS[:1])
    other = candidate("other", (0.1, 0.9, 0.5), TASKS[2:])
    alone = match(PLAYER, POET).log_odds(CHESS)
    found = match(PLAYER, bare, POET, single, other).log_odds(CHESS)
    # Not equal: what all candidates reach in a task is common to them.
    assert found[0, [0, 2]] == pytest.approx(alone[0], abs=2e-3)
    assert not found[0, [1, 3]].any()


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), max_size=12), st.integers(2, 4))
def test_a_candidate_with_tasks_of_the_catalog_changes_nothing_for_others(
    others: list[list[float]], count: int
) -> None:
    """Kind: bystanders that flip near ties. Bitwise, everyday prompts included."""
    everyday = replace(PLACES, everyday=np.append(20 * AXES[0], -10).astype(np.float32))
    catalog = [candidate(f"c{i}", np.roll((0.9, 0.2, 0.5, 0.6, 0.4), i)) for i in range(5)]
    prompts = np.concatenate([CHESS, POEM, KNOWN])

    def matched(*pool: Candidate) -> Float32Array:
        return match_tasks(pool, by_packed, SPACE, everyday, catalog=catalog).log_odds(prompts)

    bystanders = [candidate(f"b{i}", a[:count], TASKS[:count]) for i, a in enumerate(others)]
    alone = matched(PLAYER, POET)
    np.testing.assert_array_equal(matched(PLAYER, POET, *bystanders)[:, :2], alone)
    assert np.abs(alone).max() > 1


def test_many_different_tests_are_joined_and_each_counts_its_own_tasks() -> None:
    random = np.random.default_rng(1)
    tests = [sorted(random.permutation(4)[: 2 + i % 3].tolist()) for i in range(40)]
    pool = [
        candidate(f"c{i}", [0.9 if t == 0 else 0.3 for t in each], [TASKS[t] for t in each])
        for i, each in enumerate(tests)
    ]
    found = match(*pool).log_odds(CHESS)[0]
    took = np.array([0 in each for each in tests])
    assert found[took].min() > 0.5
    assert np.abs(found[~took]).max() < 0.5


@pytest.mark.parametrize("accuracy", [0.1, 0.3, 0.7, 0.9])
def test_a_task_that_most_fail_lowers_all_near_it_and_an_easy_one_raises_them(
    accuracy: float,
) -> None:
    alike = [candidate(name, [accuracy] * len(TASKS)) for name in "abcdef"]
    near, far = match(*alike).log_odds(CHESS)[0], match(*alike).log_odds(-5 * PLACE["chess"][None])
    assert (np.sign(near) == np.sign(accuracy - 0.5)).all()
    assert 0.2 < np.abs(near).max() < 1.2
    assert not far.any()


def test_what_is_common_does_not_depend_on_who_has_the_same_other_tasks() -> None:
    """Kind: published figures, whose tests share most tasks. It gave those in large groups more."""
    strong = (0.9, 0.9, 0.9, 0.9)
    many = [candidate(f"many-{i}", strong, TASKS[:4]) for i in range(8)]
    alone = candidate("alone", (*strong, 0.9), TASKS)
    found = match(*many, alone).log_odds(CHESS)[0]
    assert found[-1] > 0.5
    assert found[:-1] == pytest.approx(found[-1], abs=0.02)


def test_an_everyday_prompt_raises_all_unless_a_test_has_questions_like_it() -> None:
    weights = np.append(20 * AXES[8] + 20 * AXES[0], -10).astype(np.float32)  # and chess, wrongly
    everyday = replace(PLACES, everyday=weights)
    other = candidate("other", (0.1, 0.9, 0.5), TASKS[2:])
    pool = (PLAYER, POET, other, Candidate("bare", ()))
    found = match_tasks(pool, by_packed, SPACE, everyday)
    raised = found.log_odds(5 * AXES[8][None])[0]
    assert raised == pytest.approx([LIFT] * 4, abs=0.05)
    assert np.ptp(raised) == 0  # so the order of candidates stays
    assert np.abs(found.log_odds(5 * AXES[9][None])).max() < 0.05
    plain = match(*pool).log_odds(CHESS)[0]
    assert found.log_odds(CHESS)[0] == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize(("questions", "kept"), [(1000.0, 0.9), (3.0, 0.5)])
def test_deviations_are_shrunk_by_their_evidence(questions: float, kept: float) -> None:
    random = np.random.default_rng(2)
    skill = np.clip(0.5 + 0.15 * random.standard_normal((30, 12)), 0.05, 0.95)
    seen = random.binomial(int(questions), skill) / questions
    true, plain = skill - skill.mean(1, keepdims=True), seen - seen.mean(1, keepdims=True)
    shrunk = shrunk_deviations(seen, questions)
    assert np.mean((shrunk - true) ** 2) <= np.mean((plain - true) ** 2) + 1e-6
    share = np.linalg.norm(shrunk) / np.linalg.norm(plain)
    assert share > kept if kept > 0.6 else share < kept


def test_an_accuracy_of_few_questions_moves_its_candidate_less() -> None:
    def asked(questions: int) -> float:
        results = [replace(r, questions=questions) for r in PLAYER.aptitude]
        found = match(replace(PLAYER, aptitude=results), POET, *others).log_odds(CHESS)
        return float(found[0, 0] - found[0, 1])

    profile = (0.95, 0.2, 0.8, 0.4, 0.6)
    others = [candidate(f"c{i}", profile[i:] + profile[:i]) for i in range(5)]
    assert asked(1) < asked(3) < 0.9 * asked(20)
    assert asked(0) == asked(20) < asked(200)


def test_tests_beyond_a_number_of_tasks_are_not_matched() -> None:
    """Kind: 1,000 candidates, each with a test of its own. Time and memory stay bounded."""
    pool = [
        Candidate(f"c{i}", tuple(TaskResult(f"{i} {t}", 0.5) for t in range(50)))
        for i in range(100)
    ]

    def place(tasks: Mapping[str, bytes]) -> tuple[Float32Array, NDArray[np.bool_]]:
        assert len(tasks) <= MAX_JOINED_TASKS
        return np.resize(AXES, (len(tasks), P)), np.zeros(len(tasks), np.bool_)

    assert match_tasks(pool, place, SPACE, PLACES).log_odds(CHESS).shape == (1, 100)


def test_a_place_that_the_weights_can_read_is_preferred() -> None:
    def unread(place: bytes) -> Candidate:
        return replace(POET, aptitude=[replace(r, place=place) for r in POET.aptitude])

    def place(tasks: Mapping[str, bytes]) -> tuple[Float32Array, NDArray[np.bool_]]:
        assert all(PLACES.unpack(content) is not None for content in tasks.values())
        return by_packed(tasks)

    pool = (PLAYER, unread(b""), unread(b""), unread(b"of other weights"))
    assert match_tasks(pool, place, SPACE, PLACES).log_odds(CHESS)[0, 0] > 1


def test_noise_alone_is_shrunk_to_nothing_and_hard_tasks_are_kept() -> None:
    random = np.random.default_rng(3)
    noise = random.binomial(20, 0.5, (40, 30)) / 20
    assert np.abs(shrunk_deviations(noise)).mean() < 0.25 * np.abs(noise - 0.5).mean()
    hard = np.linspace(0.2, 0.8, 30)
    seen = random.binomial(20, hard, (40, 30)) / 20
    expected = np.broadcast_to(hard - hard.mean(), seen.shape)
    assert shrunk_deviations(seen) == pytest.approx(expected, abs=0.12)
    assert not shrunk_deviations(np.full((2, 3), np.nan)).any()


def test_added_log_odds_leave_certain_and_unchanged_probabilities() -> None:
    p = np.array([[0.0, 1.0, 0.3, 0.5, np.nan]], dtype=np.float32)
    found = add_log_odds(p, np.array([[3, -3, 0, np.log(3), 1]], dtype=np.float32))[0]
    assert found[:4].tolist() == pytest.approx([0, 1, p[0, 2], 0.75])
    assert found[2] == p[0, 2]
    assert np.isnan(found[4])


def test_places_survive_files_and_packing_and_those_of_other_weights_are_refused() -> None:
    known = TaskPlaces({"a, b": AXES[0]}, PLACES.keyword_weight, PLACES.keyword_bias, LANDMARKS)
    again = from_arrays(to_arrays(known))
    assert again is not None
    assert again.of_tasks["a, b"] == pytest.approx(AXES[0], abs=1e-3)
    assert again.id == from_arrays(to_arrays(again)).id  # type: ignore[union-attr]
    packed = again.pack(AXES[3])
    assert again.unpack(packed) == pytest.approx(AXES[3], abs=1e-3)
    for other in (b"", packed[:-2], bytes(len(packed)), packed[:8] + bytes(2 * P)):
        assert again.unpack(other) is None
    assert from_arrays({"readout": AXES}) is None


def test_its_identity_follows_what_it_depends_on() -> None:
    other = candidate("player", (0.9, 0.2, 0.5, 0.6, 0.6))
    assert match(PLAYER, POET).id == match(PLAYER, POET).id
    assert len({match(PLAYER, POET).id, match(PLAYER).id, match(other, POET).id}) == 3


def test_the_match_does_not_fade_where_the_weights_cannot_read_the_task() -> None:
    """A task near the training instructions, under keywords that training had and others."""
    pool = (
        candidate("good", (0.2, 0.2, 0.5, 0.6, 0.95)),
        candidate("bad", (0.9, 0.9, 0.5, 0.6, 0.2)),
    )

    def found(readable: float) -> Float32Array:
        read = match_tasks(
            pool,
            by_packed,
            SPACE,
            PLACES,
            lambda tasks, _: np.full(len(tasks), readable, np.float32),
        )
        return read.log_odds(KNOWN)[0]

    known, unknown = found(1.0), found(0.0)
    assert known == pytest.approx(match(*pool).log_odds(KNOWN)[0])
    assert abs(known[0] - known[1]) < 0.1
    assert unknown[0] - unknown[1] > 1
