"""Match an instruction with the tasks of the candidates' aptitude tests.

The weights do not know kinds of instructions that training did not hold, but a candidate's test
may hold them. So its accuracies on the tasks that an instruction is near to, less its overall
level, are added to the log-odds.

    match_m = FACTOR x relevance_m x sum_t weight_t new_t deviation_mt / sum_t weight_t
    weight_t = exp(cos(u - c, v_t - c) / TEMPERATURE)

u is the instruction's place, v_t that of task t (engine/bundle/task_places.py), c the mean of v_t.
deviation_mt is the candidate's accuracy on the task less its level, shrunk by its evidence. new_t
falls to 0 for tasks near the training instructions, because the weights know better there.
relevance_m falls to 0 for instructions that are far from all tasks of the candidate's test. Where a
task's place is estimated from its keywords, the match also fades for instructions near the training
instructions.

Two things are added for many candidates alike:

- COMMON x relevance x logit(mean accuracy of all candidates on the tasks nearby). The questions of
  a test are chosen so that about half of the candidates fail them, so that accuracies are nearer to
  .5 than on the instructions that the test stands for.
- LIFT x everyday(u) x (1 - the highest relevance), for all candidates of the table, so that their
  order stays: what a classifier takes for an everyday prompt, which hardly any strong candidate
  fails. Benchmarks do not hold such prompts. A test with questions like the instruction knows
  better, so it takes precedence.

Shapes: B instructions, M candidates, T tasks, D width, P axes, E encoder width.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.candidate import USUAL_QUESTIONS, Candidate
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.task_places import TaskPlaces, normalized
from engine.bundle.types import Float32Array
from engine.registry.matching.deviations import shrunk_deviations

TEMPERATURE, FACTOR = 0.15, 6.0
# Ramps over cosines: of a task's nearness to the training instructions, of an instruction's, and of
# an instruction's nearness to the nearest task. Estimated places are less exact, so that even
# relevant ones are less near.
NEW_TASK, NEW_INSTRUCTION = (0.65, 0.55), (0.65, 0.5)
RELEVANT, RELEVANT_ESTIMATED = (0.35, 0.55), (0.2, 0.4)
# Fitted on ten folders; without each of them in turn COMMON is .39 to .51. The mean accuracy of a
# task is taken with PRIOR_CANDIDATES more at .5, as the candidates may be few.
COMMON, PRIOR_CANDIDATES = 0.47, 4
LIFT = 4.0
DECIMALS = 5
MAX_GROUPS = 8  # sets of tasks with a mean of their own; each costs a request some 30 us
MAX_JOINED_TASKS = 1000  # of the last group, whose cost is candidates x tasks


def ramp(values: NDArray[Any], zero: Any, one: Any) -> Float32Array:
    """Return 0 at `zero` and beyond, 1 at `one` and beyond, linear in between."""
    return np.asarray(np.clip((values - zero) / (one - zero), 0, 1), dtype=np.float32)


def add_log_odds(p: Float32Array, added: Float32Array) -> Float32Array:
    """Return probabilities p whose log-odds are higher by `added`, of the same shape. Those that it
    does not change stay as they are, to the last bit."""
    factor = np.exp(added.astype(np.float64))
    changed = p * factor / (p * factor + (1 - p))
    return np.where(added == 0, p, changed).astype(np.float32)


@dataclass(frozen=True)
class NearTask:
    """A task near an instruction. weight: its share of the match, in [0, 1]. by_questions: whether
    its place is that of its questions, and not estimated from its keywords."""

    task: str
    weight: float
    by_questions: bool


@dataclass(frozen=True, eq=False)
class _TestGroup:
    """Candidates whose tests have the same tasks, or whose tests have few in common.

    rows: positions of the candidates. places, away: (T, P) of the tasks, and relative to their mean
    `center` (P,). deviations: (M, T), with new_t. taken: (M, T). estimated: (T,). common: (T,)
    log-odds of the mean accuracy of all candidates of the table.
    """

    rows: NDArray[np.int64]
    tasks: tuple[str, ...]
    places: Float32Array
    center: Float32Array
    away: Float32Array
    deviations: Float32Array
    taken: Float32Array
    estimated: NDArray[np.bool_]
    common: Float32Array

    def weights(self, units: Float32Array) -> Float32Array:
        """Return the weights (B, T) of tasks for instructions at places (B, P)."""
        cosines = normalized(units - self.center) @ self.away.T
        highest = cosines.max(axis=1, keepdims=True)
        return np.asarray(np.exp((cosines - highest) / TEMPERATURE), dtype=np.float32)

    @cached_property
    def members(self) -> Float32Array:
        """`taken`, or one row of it for all candidates if they are alike."""
        return self.taken[:1] if self.taken.all() else self.taken

    def relevance(self, units: Float32Array) -> Float32Array:
        """Return how relevant the tests are for instructions, (B, M) or (B, 1)."""
        zero = np.where(self.estimated, RELEVANT_ESTIMATED[0], RELEVANT[0])
        one = np.where(self.estimated, RELEVANT_ESTIMATED[1], RELEVANT[1])
        return self._highest(ramp(units @ self.places.T, zero, one))

    def relevance_of_known(self, units: Float32Array) -> Float32Array:
        """Return how relevant the tasks are whose questions are known, (B, M) or (B, 1)."""
        by_task = ramp(units @ self.places.T, *RELEVANT)
        return self._highest(np.where(self.estimated, np.float32(0), by_task))

    def _highest(self, by_task: Float32Array) -> Float32Array:
        return np.asarray((by_task[:, None, :] * self.members).max(axis=2))

    def common_log_odds(self, weights: Float32Array) -> Float32Array:
        """Return COMMON x the log-odds of the tasks nearby whose questions are known, (B, M) or
        (B, 1). weights: (B, T) of the tasks."""
        known = np.where(self.estimated, np.float32(0), weights)
        total = np.maximum(known @ self.members.T, 1e-9)
        return np.asarray(COMMON * ((known * self.common) @ self.members.T) / total)


class TaskMatch:
    """The match for the candidates of one table. Immutable; for any thread."""

    def __init__(
        self, groups: Sequence[_TestGroup], count: int, space: InstructionSpace, places: TaskPlaces
    ) -> None:
        """count: M. groups: of candidates with a test."""
        self._groups = tuple(groups)
        self._count = count
        self._space = space
        self._places = places
        self._uses_keywords = any(group.estimated.any() for group in groups)

    @cached_property
    def id(self) -> str:
        """Identify what log_odds depends on, within one bundle."""
        digest = hashlib.sha256()
        for group in self._groups:
            for array in (
                group.rows,
                group.places,
                group.deviations,
                group.taken,
                group.estimated,
                group.common,
            ):
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def log_odds(self, embeddings: Float32Array) -> Float32Array:
        """Return what to add to the log-odds of M candidates for embeddings (B, D), (B, M).

        It is rounded, so that it hardly depends on the order of additions, and servers fit the same
        thing to the same outcomes.
        """
        units = self._space.unit_vectors(embeddings, self._space.mean)
        found = np.zeros((len(units), self._count), dtype=np.float32)
        unlike = np.ones((len(units), 1), dtype=np.float32)
        fade = np.ones(len(units), dtype=np.float32)
        if self._uses_keywords:
            fade = ramp(self._places.nearness(units), *NEW_INSTRUCTION)
        for group in self._groups:
            weights = group.weights(units)
            known = group.relevance_of_known(units)
            unlike = np.minimum(unlike, 1 - known.max(axis=1, keepdims=True))
            shared = known * group.common_log_odds(weights)
            total = np.maximum(weights @ group.taken.T, 1e-9)
            weights = np.where(group.estimated, weights * fade[:, None], weights)
            matched = group.relevance(units) * (weights @ group.deviations.T) / total
            found[:, group.rows] = FACTOR * matched + shared
        found += LIFT * unlike * self._places.everyday_share(units)[:, None]
        return np.asarray(np.round(np.nan_to_num(found), DECIMALS), dtype=np.float32)

    def unusualness(self, embedding: Float32Array) -> float:
        """Return the probability that a text with this embedding (D,) is no instruction at all."""
        units = self._space.unit_vectors(embedding[None, :], self._space.mean)
        return float(self._places.unusualness(units)[0])

    def nearest(self, embedding: Float32Array, row: int, count: int) -> list[NearTask]:
        """Return the tasks of the test of candidate `row` that weigh most, most first."""
        units = self._space.unit_vectors(embedding[None, :], self._space.mean)
        for group in self._groups:
            place = np.flatnonzero(group.rows == row)
            if len(place):
                weights = group.weights(units)[0] * group.taken[place[0]]
                weights /= max(float(weights.sum()), 1e-9)
                order = np.argsort(-weights, kind="stable")[:count]
                return [
                    NearTask(group.tasks[i], float(weights[i]), not group.estimated[i])
                    for i in order
                ]
        return []


PlaceTasks = Callable[[Mapping[str, bytes]], tuple[Float32Array, NDArray[np.bool_]]]


def match_tasks(
    candidates: Sequence[Candidate],
    place: PlaceTasks,
    space: InstructionSpace,
    places: TaskPlaces,
) -> TaskMatch:
    """Prepare the match for M candidates.

    place: (task -> packed place, empty if none is known) -> places (T, P), and whether each is
    estimated.
    """
    by_test: dict[tuple[str, ...], list[int]] = {}
    for row, candidate in enumerate(candidates):
        if len(candidate.aptitude) > 1:
            test = tuple(sorted([r.task for r in candidate.aptitude]))
            by_test.setdefault(test, []).append(row)
    largest = sorted(by_test, key=lambda test: (-len(by_test[test]), by_test[test][0]))
    joined, known = list[int](), set[str]()
    for test in largest[MAX_GROUPS - 1 :]:  # what does not fit is not matched
        if len(known.union(test)) <= MAX_JOINED_TASKS:
            known.update(test)
            joined += by_test[test]
    members = [by_test[test] for test in largest[: MAX_GROUPS - 1]]
    common = _common_log_odds(c for c in candidates if len(c.aptitude) > 1)
    groups = [
        _group(candidates, sorted(rows), place, places, common)
        for rows in [*members, *([joined] if joined else [])]
    ]
    return TaskMatch(groups, len(candidates), space, places)


def _common_log_odds(candidates: Iterable[Candidate]) -> dict[str, float]:
    """Return task -> log-odds of the mean accuracy of all that took it, whatever their other tasks:
    by that of their group, candidates with rarer tests would rank lower."""
    taken: dict[str, list[float]] = {}
    for candidate in candidates:
        for result in candidate.aptitude:
            taken.setdefault(result.task, []).append(result.accuracy)
    found = {}
    for task, accuracies in taken.items():
        total = math.fsum(accuracies) + PRIOR_CANDIDATES / 2
        mean = min(max(total / (len(accuracies) + PRIOR_CANDIDATES), 0.03), 0.97)
        found[task] = math.log(mean / (1 - mean))
    return found


def _group(
    candidates: Sequence[Candidate],
    rows: list[int],
    place: PlaceTasks,
    places: TaskPlaces,
    common: Mapping[str, float],
) -> _TestGroup:
    packed: Counter[tuple[str, bytes]] = Counter()
    for row in rows:
        packed.update([(r.task, r.place) for r in candidates[row].aptitude])
    # Of several places of one task, that of most candidates is used, if the weights can read it.
    ranked = sorted(packed.most_common(), key=lambda item: places.unpack(item[0][1]) is None)
    by_task = {task: place_of for (task, place_of), _ in reversed(ranked)}
    tasks = sorted(by_task)
    column = {task: i for i, task in enumerate(tasks)}
    accuracies = np.full((len(rows), len(tasks)), np.nan)
    questions = np.full(accuracies.shape, float(USUAL_QUESTIONS))
    for i, row in enumerate(rows):
        for result in candidates[row].aptitude:
            accuracies[i, column[result.task]] = result.accuracy
            questions[i, column[result.task]] = result.questions or USUAL_QUESTIONS
    vectors, estimated = place({task: by_task[task] for task in tasks})
    new = ramp(places.nearness(vectors), *NEW_TASK)
    taken = ~np.isnan(accuracies)
    deviations = np.zeros(accuracies.shape)
    # Tests differ in how much is chance, so that one says nothing of another's evidence.
    for test in np.unique(taken, axis=0):
        block = np.ix_((taken == test).all(axis=1), test)
        deviations[block] = shrunk_deviations(accuracies[block], questions[block])
    center = vectors.mean(axis=0)
    return _TestGroup(
        rows=np.array(rows, dtype=np.int64),
        tasks=tuple(tasks),
        places=vectors,
        center=center,
        away=normalized(vectors - center),
        deviations=(deviations * new).astype(np.float32),
        taken=taken.astype(np.float32),
        estimated=estimated,
        common=np.array([common[task] for task in tasks], dtype=np.float32),
    )
