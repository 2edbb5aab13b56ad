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

- COMMON x relevance x logit(mean accuracy of candidates on the tasks nearby). The questions of
  a test are chosen so that about half of the candidates fail them, so that accuracies are nearer to
  .5 than on the instructions that the test stands for.
- LIFT x everyday(u) x (1 - relevance x hard), the least of all candidates, for all of the table, so
  that their order stays: what a classifier takes for an everyday prompt, which hardly any strong
  candidate fails. Benchmarks do not hold such prompts. A test with questions like the instruction
  knows better if its candidates fail them, so it takes precedence.

How hard tasks are, and how much their accuracies vary by chance, is computed from the bundle's
catalog for the tasks that it has, and from the table only for other tasks. So a candidate with a
test of the catalog's tasks changes nothing for the others.

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
from engine.bundle.types import Float32Array, Float64Array
from engine.registry.matching.deviations import deviation_statistics, shrunk_deviations

TEMPERATURE, FACTOR = 0.15, 6.0
# Ramps over cosines: of a task's nearness to the training instructions, of an instruction's, and of
# an instruction's nearness to the nearest task. Estimated places are less exact, so that even
# relevant ones are less near.
NEW_TASK, NEW_INSTRUCTION = (0.65, 0.55), (0.65, 0.5)
RELEVANT, RELEVANT_ESTIMATED = (0.35, 0.55), (0.2, 0.4)
# Fitted on ten folders; without each of them in turn COMMON is .39 to .51. The mean accuracy of a
# task is taken with PRIOR_CANDIDATES more at .5, as the candidates may be few.
COMMON, PRIOR_CANDIDATES = 0.47, 4
# Ramp over the log-odds of the mean accuracy on the tasks nearby, from no to all suppression: where
# candidates fail the tasks, a prompt that looks like an everyday one is none.
LIFT, EASY = 3.4, (1.0, 0.6)
DECIMALS = 5
MAX_GROUPS = 8  # sets of tasks with a mean of their own; each costs a request some 30 us
MAX_JOINED_TASKS = 1000  # of the last group, whose cost is candidates x tasks


def ramp(values: NDArray[Any], zero: Any, one: Any) -> Float32Array:
    """Return 0 at `zero` and beyond, 1 at `one` and beyond, linear in between."""
    share = (values - zero) / (one - zero)
    return np.asarray(np.minimum(np.maximum(share, 0), 1), dtype=np.float32)


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

    rows: positions of the candidates. places: (T, P) of the tasks. deviations: (M, T), with new_t.
    taken: (M, T). estimated: (T,). common: (T,) log-odds of the mean accuracy of candidates. known:
    whether its tasks are all those of the catalog.
    """

    rows: NDArray[np.int64]
    tasks: tuple[str, ...]
    places: Float32Array
    deviations: Float32Array
    taken: Float32Array
    estimated: NDArray[np.bool_]
    common: Float32Array
    known: bool


class _Tasks:
    """The tasks of G groups side by side, S in all, so that a step is one call for all of them: a
    call of NumPy takes longer than its arithmetic here (.43 to .15 ms for 8 groups).

    groups: each with its part of the tasks. places, estimated, common: of all tasks.
    """

    def __init__(self, groups: Sequence[_TestGroup], count: int) -> None:
        """count: M."""
        sizes = [len(group.tasks) for group in groups]
        ends = np.cumsum(sizes, dtype=np.int64)
        self._starts: NDArray[np.int64] = ends - np.array(sizes)
        self._group_of_task = np.repeat(np.arange(len(groups)), sizes)
        self._group_of_row = np.zeros(count, dtype=np.int64)
        for number, group in enumerate(groups):
            self._group_of_row[group.rows] = number
        self.groups = [
            (group, slice(start, end))
            for group, start, end in zip(groups, self._starts, ends, strict=True)
        ]
        self._unlike = [(g, part) for g, part in self.groups if not g.taken.all()]
        self.places = np.concatenate([group.places for group in groups])
        self._centers = np.stack([group.places.mean(axis=0) for group in groups])
        self._away = normalized(self.places - self._centers[self._group_of_task])
        self._offsets = (self._away * self._centers[self._group_of_task]).sum(axis=1)
        self.estimated = np.concatenate([group.estimated for group in groups])
        self.common = np.concatenate([group.common for group in groups])
        zero, one = (
            np.where(self.estimated, of_estimated, of_known).astype(np.float32)
            for of_estimated, of_known in zip(RELEVANT_ESTIMATED, RELEVANT, strict=True)
        )
        self._relevant = (zero, one)

    def weights(self, units: Float32Array) -> Float32Array:
        """Return the weights (B, S) of tasks for instructions at places (B, P)."""
        away = units[:, None, :] - self._centers
        distances = np.sqrt((away * away).sum(axis=2))
        products = units @ self._away.T - self._offsets  # (u - c) times v - c of length 1
        cosines = products / np.maximum(distances, 1e-9)[:, self._group_of_task]
        highest = np.maximum.reduceat(cosines, self._starts, axis=1)[:, self._group_of_task]
        return np.asarray(np.exp((cosines - highest) / TEMPERATURE), dtype=np.float32)

    def relevance(self, units: Float32Array) -> Float32Array:
        """Return how relevant tasks are for instructions at places (B, P), (B, S)."""
        return ramp(units @ self.places.T, *self._relevant)

    def highest(self, by_task: Float32Array) -> Float32Array:
        """Return the highest value of the tasks that each candidate took, (B, M). by_task: (B, S),
        at least 0."""
        found = np.maximum.reduceat(by_task, self._starts, axis=1)[:, self._group_of_row]
        for group, part in self._unlike:
            found[:, group.rows] = (by_task[:, None, part] * group.taken).max(axis=2)
        return np.asarray(found)

    def sums(self, by_task: Float32Array) -> Float32Array:
        """Return the sum over the tasks that each candidate took, (B, M). by_task: (B, S)."""
        found = np.add.reduceat(by_task, self._starts, axis=1)[:, self._group_of_row]
        with np.errstate(invalid="ignore"):  # see deviations()
            for group, part in self._unlike:
                found[:, group.rows] = by_task[:, part] @ group.taken.T
        return np.asarray(found)

    def hardness(self, known: Float32Array, relevance: Float32Array) -> Float32Array:
        """Return how relevant and hard the catalog's tasks are, (B,), 0 without a catalog.

        known: (B, S) weights, 0 of estimated tasks. relevance: (B, S).
        """
        for group, part in self.groups:
            if group.known:
                near = np.where(group.estimated, 0, relevance[:, part]).max(axis=1)
                common = (
                    known[:, part] @ group.common / np.maximum(known[:, part].sum(axis=1), 1e-9)
                )
                return np.asarray(near * ramp(common, *EASY), dtype=np.float32)
        return np.zeros(len(known), dtype=np.float32)

    def deviations(self, weights: Float32Array) -> Float32Array:
        """Return the sum of weighted deviations of each candidate, (B, M), 0 without a test.
        weights: (B, S)."""
        found = np.zeros((len(weights), len(self._group_of_row)), dtype=np.float32)
        # OpenBLAS 0.3.31 computes in unset lanes in products over 5 values with AVX-512: the result
        # is right, the flag is not.
        with np.errstate(invalid="ignore"):
            for group, part in self.groups:
                found[:, group.rows] = weights[:, part] @ group.deviations.T
        return found


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
        self._tasks = _Tasks(groups, count) if groups else None
        self._tested = np.zeros(count, dtype=np.float32)
        self._own_test = np.zeros(count, dtype=np.float32)  # of tasks that the catalog lacks
        for group in groups:
            self._tested[group.rows] = 1
            self._own_test[group.rows] = not group.known

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
        """Return what to add to the log-odds of M candidates for embeddings (B, D), (B, M)."""
        return self.log_odds_at(self.places(embeddings))

    def unusualness(self, embedding: Float32Array) -> float:
        """Return the probability that a text with this embedding (D,) is no instruction at all."""
        return float(self.unusualness_at(self.places(embedding[None, :]))[0])

    def places(self, embeddings: Float32Array) -> Float32Array:
        """Return the places (B, P) of instructions with embeddings (B, D)."""
        return self._space.unit_vectors(embeddings, self._space.mean)

    def unusualness_at(self, units: Float32Array) -> Float32Array:
        """See unusualness; for instructions at places (B, P), (B,)."""
        return self._places.unusualness(units)

    def log_odds_at(self, units: Float32Array) -> Float32Array:
        """See log_odds; for instructions at places (B, P).

        It is rounded, so that it hardly depends on the order of additions, and servers fit the same
        thing to the same outcomes.
        """
        found = np.zeros((len(units), self._count), dtype=np.float32)
        unlike = np.ones((len(units), 1), dtype=np.float32)
        if (tasks := self._tasks) is not None:
            weights, relevance = tasks.weights(units), tasks.relevance(units)
            relevance_of_known = tasks.highest(np.where(tasks.estimated, 0, relevance))
            known = np.where(tasks.estimated, 0, weights)
            common = tasks.sums(known * tasks.common) / np.maximum(tasks.sums(known), 1e-9)
            hard = relevance_of_known * ramp(common, *EASY) * self._own_test
            unlike -= np.maximum(hard.max(axis=1), tasks.hardness(known, relevance))[:, None]
            total = np.maximum(tasks.sums(weights), 1e-9)
            if self._uses_keywords:
                fade = ramp(self._places.nearness(units), *NEW_INSTRUCTION)[:, None]
                weights = np.where(tasks.estimated, weights * fade, weights)
            matched = tasks.highest(relevance) * tasks.deviations(weights) / total
            found += (FACTOR * matched + COMMON * relevance_of_known * common) * self._tested
        found += LIFT * unlike * self._places.everyday_share(units)[:, None]
        found[~np.isfinite(found)] = 0
        return np.asarray(found.round(DECIMALS), dtype=np.float32)

    def nearest(self, embedding: Float32Array, row: int, count: int) -> list[NearTask]:
        """Return the tasks of the test of candidate `row` that weigh most, most first."""
        if self._tasks is None:
            return []
        units = self.places(embedding[None, :])
        for group, part in self._tasks.groups:
            place = np.flatnonzero(group.rows == row)
            if len(place):
                weights = self._tasks.weights(units)[0, part] * group.taken[place[0]]
                weights /= max(float(weights.sum()), 1e-9)
                order = np.argsort(-weights, kind="stable")[:count]
                return [
                    NearTask(group.tasks[i], float(weights[i]), not group.estimated[i])
                    for i in order
                ]
        return []


ReadTasks = Callable[[Sequence[str], Float32Array], Float32Array]
PlaceTasks = Callable[[Mapping[str, bytes]], tuple[Float32Array, NDArray[np.bool_]]]


def match_tasks(
    candidates: Sequence[Candidate],
    place: PlaceTasks,
    space: InstructionSpace,
    places: TaskPlaces,
    readable: ReadTasks | None = None,
    catalog: Sequence[Candidate] = (),
) -> TaskMatch:
    """Prepare the match for M candidates.

    place: (task -> packed place, empty if none is known) -> places (T, P), and whether each is
    estimated. readable: (tasks, their places) -> how far the weights can read each from its
    keywords, (T,); None if they can. The match does not fade for what they cannot. catalog: the
    bundle's candidates, who tell how hard their tasks are.
    """
    reference = [c for c in catalog if len(c.aptitude) > 1]
    of_catalog = _common_log_odds(reference)
    by_test: dict[tuple[str, ...], list[int]] = {}
    known = list[int]()
    for row, candidate in enumerate(candidates):
        test = tuple(sorted([r.task for r in candidate.aptitude]))
        if len(test) > 1 and all(task in of_catalog for task in test):
            known.append(row)
        elif len(test) > 1:
            by_test.setdefault(test, []).append(row)
    largest = sorted(by_test, key=lambda test: (-len(by_test[test]), by_test[test][0]))
    joined, tasks = list[int](), set[str]()
    for test in largest[MAX_GROUPS - 1 :]:  # what does not fit is not matched
        if len(tasks.union(test)) <= MAX_JOINED_TASKS:
            tasks.update(test)
            joined += by_test[test]
    members = [by_test[test] for test in largest[: MAX_GROUPS - 1]]
    common = _common_log_odds(c for c in candidates if len(c.aptitude) > 1) | of_catalog
    groups = [
        _group(candidates, sorted(rows), place, places, common, readable)
        for rows in [*members, *([joined] if joined else [])]
    ]
    if reference:
        whole = (candidates, known, place, places, common, readable, reference)
        groups.insert(0, _group(*whole))
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
    readable: ReadTasks | None,
    reference: Sequence[Candidate] = (),
) -> _TestGroup:
    """Lay out the tests of some candidates; on the tasks of `reference`, and judged by it, if there
    is one."""
    packed: Counter[tuple[str, bytes]] = Counter()
    for candidate in reference or [candidates[row] for row in rows]:
        packed.update([(r.task, r.place) for r in candidate.aptitude])
    # Of several places of one task, that of most candidates is used, if the weights can read it.
    ranked = sorted(packed.most_common(), key=lambda item: places.unpack(item[0][1]) is None)
    by_task = {task: place_of for (task, place_of), _ in reversed(ranked)}
    tasks = sorted(by_task)
    accuracies, questions = _results([candidates[row] for row in rows], tasks)
    vectors, estimated = place({task: by_task[task] for task in tasks})
    new = ramp(places.nearness(vectors), *NEW_TASK)
    if readable is not None:
        new = np.maximum(new, 1 - np.where(estimated, 1, readable(tasks, vectors)))
    taken = ~np.isnan(accuracies)
    deviations = np.zeros(accuracies.shape)
    others = _results(reference, tasks)
    # Tests differ in how much is chance, so that one says nothing of another's evidence.
    for test in np.unique(taken, axis=0):
        block = np.ix_((taken == test).all(axis=1), test)
        found = None
        if reference:
            found = deviation_statistics(others[0][:, test], others[1][:, test])
        deviations[block] = shrunk_deviations(accuracies[block], questions[block], found)
    return _TestGroup(
        rows=np.array(rows, dtype=np.int64),
        tasks=tuple(tasks),
        places=vectors,
        deviations=(deviations * new).astype(np.float32),
        taken=taken.astype(np.float32),
        estimated=estimated,
        common=np.array([common[task] for task in tasks], dtype=np.float32),
        known=bool(reference),
    )


def _results(
    candidates: Sequence[Candidate], tasks: Sequence[str]
) -> tuple[Float64Array, Float64Array]:
    """Return the accuracies (M, T), NaN if not taken, and their numbers of questions."""
    column = {task: i for i, task in enumerate(tasks)}
    accuracies = np.full((len(candidates), len(tasks)), np.nan)
    questions = np.full(accuracies.shape, float(USUAL_QUESTIONS))
    for i, candidate in enumerate(candidates):
        for result in candidate.aptitude:
            accuracies[i, column[result.task]] = result.accuracy
            questions[i, column[result.task]] = result.questions or USUAL_QUESTIONS
    return accuracies, questions
