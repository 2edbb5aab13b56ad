"""Keep remembered outcomes as compact arrays, and lay them out for a fit.

Shapes: N instructions, M candidates, D width, K outcomes.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.adaptation.answer_length import AnswerTokens
from engine.adaptation.outcome_matrix import (
    PROVENANCES,
    OutcomeMatrix,
    is_preference,
    scores_of_preferences,
)
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.embedding_bytes import (
    repack,
    unpack_embedding,
    unpack_embeddings,
)
from engine.registry.outcome_changes import OutcomeChanges, StorePosition
from engine.registry.stores.outcome_types import ScoredCandidates, unpack
from engine.registry.stores.sql import Row

COMPARISON, EXPLORED, CHOSEN = (PROVENANCES.index(p) for p in ("comparison", "explored", "chosen"))
# Why a recorded outcome is not used.
NOT_REMEMBERED = "instruction not remembered"
OTHER_WEIGHTS = "scored by other weights"
NOT_REGISTERED = "candidate not registered"
CHANGED = "candidate has other aptitude results now"
NOT_SCORED = "candidate was not eligible"
MATCHED_AT_ONCE = 64  # instructions: a match of many tests takes memory for each
MAX_TOKENS = 1e6  # of one answer; more is taken for that
_ANSWER = np.dtype([("report", "u4"), ("instruction", "u4"), ("code", "u2"), ("tokens", "f4")])
_OUTCOME = np.dtype(
    [("report", "u4"), ("instruction", "u4"), ("code", "u2"), ("score", "f4")]
    + [(kind, "?") for kind in ("compared", "preferred")]
)


T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class FitScope:
    """What a fit is for.

    bundle: identity of the weights. candidates: registered ID -> fingerprint of its embedding.
    floor, ceiling: reports outside of (floor, ceiling] are not used; a negative ceiling is none.
    match: embeddings (N, D) -> what the candidates' tests add to the weights' log-odds, (N, M), the
    candidates in the order of their IDs. match_id: of it.
    """

    bundle: str
    candidates: Mapping[str, str]
    floor: int = 0
    ceiling: int = -1
    match_id: str = ""
    match: Callable[[Float32Array], Float32Array] | None = field(default=None, compare=False)

    def admits(self, reports: Int64Array) -> NDArray[np.bool_]:
        """(K,) whether reports of these numbers are used."""
        above = reports > self.floor
        return above if self.ceiling < 0 else above & (reports <= self.ceiling)


@dataclass(frozen=True, eq=False)
class MemoryView:
    """The outcomes of a scope. instructions: (N,) their numbers in the store. unused: reason ->
    recorded outcomes that are left out."""

    matrix: OutcomeMatrix
    instructions: Int64Array
    unused: Mapping[str, int]


def _doubles(values: Iterable[float] = ()) -> array[float]:
    return array("d", values)


@dataclass
class _Group:
    """Instructions that were scored for the same candidates, in order of arrival.

    embeddings: n of them, packed. logits: n of (M,) float16. rows: number in the store -> position;
    positions that no number has are of instructions that were forgotten. selected: codes, 0 for
    none.
    """

    candidates: ScoredCandidates
    embeddings: NDArray[np.uint8]
    logits: NDArray[np.float16]
    principals: list[str] = field(default_factory=list)
    selected: list[int] = field(default_factory=list)
    explored: list[bool] = field(default_factory=list)
    propensity: array[float] = field(default_factory=_doubles)
    recorded_at: array[float] = field(default_factory=_doubles)
    rows: dict[int, int] = field(default_factory=dict)

    def add(self, row: Row, packed: bytes) -> None:
        """Add a row of OutcomeChanges.instructions, and its embedding."""
        number, _, principal, _, _, logits, selected, explored, propensity, at = row
        place = len(self.principals)
        if place == len(self.embeddings):
            self.embeddings = _grown(self.embeddings)
            self.logits = _grown(self.logits)
        self.embeddings[place] = np.frombuffer(packed, dtype=np.uint8)
        self.logits[place] = np.frombuffer(logits, dtype="<f2")
        self.rows[number] = place
        self.principals.append(sys.intern(principal))
        self.selected.append(selected)
        self.explored.append(bool(explored))
        self.propensity.append(propensity)
        self.recorded_at.append(at)

    def compacted(self) -> _Group:
        """Return a copy without the instructions that were forgotten."""
        places = sorted(self.rows.values())
        new = {place: i for i, place in enumerate(places)}
        return _Group(
            self.candidates,
            self.embeddings[places],
            self.logits[places],
            [self.principals[i] for i in places],
            [self.selected[i] for i in places],
            [self.explored[i] for i in places],
            _doubles([self.propensity[i] for i in places]),
            _doubles([self.recorded_at[i] for i in places]),
            {number: new[place] for number, place in self.rows.items()},
        )


def _grown(rows: NDArray[T]) -> NDArray[T]:
    """Return rows with room for a few more: they are most of what a memory takes."""
    larger = np.empty((4 + len(rows) * 9 // 8, rows.shape[1]), dtype=rows.dtype)
    larger[: len(rows)] = rows
    return larger


class RememberedOutcomes:
    """The outcomes of a store as arrays. Not thread-safe."""

    def __init__(self) -> None:
        self.position = StorePosition()
        self._groups: dict[int, _Group] = {}
        self._group_of: dict[int, int] = {}  # number of an instruction -> of its candidate list
        self._outcomes = np.empty(0, dtype=_OUTCOME)
        self._answers = np.empty(0, dtype=_ANSWER)
        self._ids: Mapping[int, str] = {}
        self.floor, self.ceiling = 0, -1

    @property
    def lists(self) -> tuple[int, ...]:
        """Numbers of the candidate lists that are known."""
        return tuple(self._groups)

    def apply(self, changes: OutcomeChanges) -> None:
        """Take in what changed in the store."""
        if changes.restart:
            self._groups, self._group_of = {}, {}
            self._outcomes = np.empty(0, dtype=_OUTCOME)
            self._answers = np.empty(0, dtype=_ANSWER)
        self._ids = changes.candidates
        self.floor, self.ceiling = changes.floor, changes.ceiling
        for row in changes.instructions:
            self._forget(row[0])
            if (packed := repack(row[4])) is not None:
                self._remember(row, packed, changes.lists)
        if changes.reports:
            codes = {name: code for code, name in self._ids.items()}
            new = [_outcomes(report, codes) for report in changes.reports]
            self._outcomes = np.concatenate([self._outcomes, *new])
            known = [_answers(report, codes) for report in changes.reports if report[4]]
            self._answers = np.concatenate([self._answers, *known])
        if changes.remaining is not None:
            remaining = np.fromiter(changes.remaining, dtype=np.int64)
            self._outcomes = self._outcomes[np.isin(self._outcomes["report"], remaining)]
            self._answers = self._answers[np.isin(self._answers["report"], remaining)]
            for number in set(self._group_of) - set(self._outcomes["instruction"].tolist()):
                self._forget(number)
        self._compact()
        self.position = changes.position

    def view(self, scope: FitScope) -> MemoryView:
        """Lay out the outcomes of `scope`."""
        outcomes = self._outcomes[scope.admits(self._outcomes["report"])]
        unused: Counter[str] = Counter()
        columns = {name: i for i, name in enumerate(sorted(scope.candidates))}
        parts = []
        numbers, at = np.unique(outcomes["instruction"], return_inverse=True)
        groups = np.array([self._group_of.get(n, -1) for n in numbers.tolist()], dtype=np.int64)[at]
        unused[NOT_REMEMBERED] = int((groups == -1).sum())
        for number, group in self._groups.items():
            mine = outcomes[groups == number]
            if group.candidates.bundle != scope.bundle:
                unused[OTHER_WEIGHTS] += len(mine)
            elif len(mine):
                parts.append(self._lay_out(group, mine, scope, columns, unused))
        view = _joined(parts, tuple(columns))
        return MemoryView(view.matrix, view.instructions, {k: n for k, n in unused.items() if n})

    def answers(self, scope: FitScope, limit: int) -> AnswerTokens:
        """Return the answer lengths of `scope`, of the newest `limit` instructions."""
        answers = self._answers[scope.admits(self._answers["report"])]
        candidates = tuple(sorted(scope.candidates))
        column_of = np.full(max(self._ids, default=0) + 1, -1)
        for code, name in self._ids.items():
            if name in scope.candidates:
                column_of[code] = candidates.index(name)
        answers = answers[column_of[answers["code"]] >= 0]
        usable = [
            number
            for number in np.unique(answers["instruction"]).tolist()
            if (group := self._groups.get(self._group_of.get(number, -1)))
            and group.candidates.bundle == scope.bundle
        ][-limit:]
        answers = answers[np.isin(answers["instruction"], usable)]
        tokens = np.full((len(usable), len(candidates)), np.nan, dtype=np.float32)
        rows = np.searchsorted(usable, answers["instruction"])
        tokens[rows, column_of[answers["code"]]] = answers["tokens"]
        vectors = [self._embedding(number) for number in usable]
        return AnswerTokens(np.array(vectors, dtype=np.float32), candidates, tokens)

    def _embedding(self, number: int) -> Float32Array:
        group = self._groups[self._group_of[number]]
        return unpack_embedding(group.embeddings[group.rows[number]].tobytes())

    def _remember(self, row: Row, packed: bytes, lists: Mapping[int, ScoredCandidates]) -> None:
        if row[3] not in self._groups:
            candidates = lists[row[3]]
            embeddings = np.empty((0, len(packed)), dtype=np.uint8)
            logits = np.empty((0, len(candidates.ids)), dtype=np.float16)
            self._groups[row[3]] = _Group(candidates, embeddings, logits)
        self._groups[row[3]].add(row, packed)
        self._group_of[row[0]] = row[3]

    def _forget(self, number: int) -> None:
        group = self._group_of.pop(number, None)
        if group is not None:
            del self._groups[group].rows[number]

    def _compact(self) -> None:
        for number, group in list(self._groups.items()):
            if not group.rows:
                del self._groups[number]
            elif len(group.principals) > 2 * len(group.rows) + 1000:
                self._groups[number] = group.compacted()

    def _lay_out(
        self,
        group: _Group,
        outcomes: NDArray[np.void],
        scope: FitScope,
        columns: Mapping[str, int],
        unused: Counter[str],
    ) -> MemoryView:
        """Lay out the outcomes of one group; every one has its instruction there."""
        numbers, at = np.unique(outcomes["instruction"], return_inverse=True)
        places = np.array([group.rows[n] for n in numbers.tolist()])
        several = np.bincount(at, minlength=len(numbers)) > 1
        column_of = np.full(max(self._ids) + 1, -1)
        scored = dict(zip(group.candidates.ids, group.candidates.fingerprints, strict=True))
        logits = np.full((len(numbers), len(columns)), np.nan, dtype=np.float32)
        for i, name in enumerate(group.candidates.ids):
            if scope.candidates.get(name) == scored[name]:
                logits[:, columns[name]] = group.logits[places, i]
        for code, name in self._ids.items():
            here = int((outcomes["code"] == code).sum())
            if name not in columns:
                unused[NOT_REGISTERED] += here
            elif name not in scored:
                unused[NOT_SCORED] += here
            elif scope.candidates[name] != scored[name]:
                unused[CHANGED] += here
            else:
                column_of[code] = columns[name]
        column = column_of[outcomes["code"]]
        used = column >= 0
        used[used] = ~np.isnan(logits[at[used], column[used]])
        unused[NOT_SCORED] += int((column >= 0).sum() - used.sum())
        if scope.match is not None:
            for start in range(0, len(places), MATCHED_AT_ONCE):
                part = slice(start, start + MATCHED_AT_ONCE)
                logits[part] += scope.match(unpack_embeddings(group.embeddings[places[part]]))
        return _matrix(group, outcomes[used], at[used], column[used], numbers, places,
                       several, logits, tuple(columns))  # fmt: skip


def _outcomes(report: Row, codes: Mapping[str, int]) -> NDArray[np.void]:
    """Convert a row of OutcomeChanges.reports, without calls that failed: that an upstream was down
    says nothing about its answers."""
    number, instruction, blob, compared, details = report
    pairs = unpack(blob)
    outcomes = np.zeros(len(pairs), dtype=_OUTCOME)
    outcomes["report"], outcomes["instruction"] = number, instruction
    outcomes["code"], outcomes["score"] = pairs["code"], pairs["score"]
    outcomes["compared"] = bool(compared)
    if '"error"' not in details and '"pairwise ' not in details:  # saves parsing nearly all of them
        return outcomes
    content = json.loads(details)
    outcomes["preferred"] = is_preference(content.get("grader") or "")
    used = content.get("usage") or {}
    failed = [codes[n] for n, usage in used.items() if usage.get("error") and n in codes]
    return outcomes[~np.isin(outcomes["code"], failed)]


def _answers(report: Row, codes: Mapping[str, int]) -> NDArray[np.void]:
    """Return the answer lengths in the details of a row of OutcomeChanges.reports."""
    number, instruction, _, _, details = report
    found = [
        (number, instruction, codes[name], min(float(used["output_tokens"]), MAX_TOKENS))
        for name, used in json.loads(details).get("usage", {}).items()
        if used.get("output_tokens") and not used.get("error") and name in codes
    ]
    return np.array(found, dtype=_ANSWER)


def _matrix(
    group: _Group,
    outcomes: NDArray[np.void],
    at: Int64Array,
    column: Int64Array,
    numbers: Int64Array,
    places: Int64Array,
    several: NDArray[np.bool_],
    logits: Float32Array,
    candidates: tuple[str, ...],
) -> MemoryView:
    """Build the part of one group.

    outcomes: K used ones, at[k] and column[k] say where they belong. numbers, places, several:
    (N,) of the instructions: number in the store, position in the group, whether several
    candidates have outcomes.
    """
    selected = np.array([group.selected[p] for p in places.tolist()])
    explored = np.array([group.explored[p] for p in places.tolist()], dtype=bool)
    drawn = np.array([group.propensity[p] for p in places.tolist()], dtype=np.float32)
    other = (selected[at] != 0) & (selected[at] != outcomes["code"])
    compared = several.copy()
    np.logical_or.at(compared, at, outcomes["compared"] | other)
    kind = np.where(explored, EXPLORED, CHOSEN)
    kind[compared] = COMPARISON
    shape = (len(numbers), len(candidates))
    scores = np.full(shape, np.nan, dtype=np.float32)
    provenance = np.full(shape, -1, dtype=np.int8)
    propensity = np.ones(shape, dtype=np.float32)
    scores[at, column] = outcomes["score"]
    preferred = np.setdiff1d(at[outcomes["preferred"]], at[~outcomes["preferred"]])
    scores[preferred] = scores_of_preferences(scores[preferred], logits[preferred])
    provenance[at, column] = kind[at]
    propensity[at, column] = np.where(compared, 1.0, drawn)[at]
    used = np.unique(at)
    # All of them as a slice, because that copies nothing: the arrays may be large.
    rows = slice(None) if len(used) == len(numbers) else used
    matrix = OutcomeMatrix(
        unpack_embeddings(group.embeddings[places[rows]]),
        candidates,
        logits[rows],
        scores[rows],
        provenance[rows],
        propensity[rows],
        tuple(group.principals[p] for p in places[rows].tolist()),
        np.array([group.recorded_at[p] for p in places[rows].tolist()], dtype=np.float64),
    )
    return MemoryView(matrix, numbers[rows], {})


def _joined(parts: list[MemoryView], candidates: tuple[str, ...]) -> MemoryView:
    """Join parts, instructions in the order of their times and then of their numbers."""
    shape = (0, len(candidates))
    if not parts:
        nothing = np.empty(shape, dtype=np.float32)
        matrix = OutcomeMatrix(
            np.empty((0, 0), dtype=np.float32),
            candidates,
            nothing,
            nothing,
            np.empty(shape, dtype=np.int8),
            nothing,
            (),
            np.empty(0),
        )
        return MemoryView(matrix, np.empty(0, dtype=np.int64), {})
    matrices = [part.matrix for part in parts]
    numbers = np.concatenate([part.instructions for part in parts])
    recorded_at = np.concatenate([m.recorded_at for m in matrices])
    order = np.lexsort((numbers, recorded_at))
    if len(parts) == 1 and np.array_equal(order, np.arange(len(order))):
        return parts[0]
    principals = [name for m in matrices for name in m.principals]
    matrix = OutcomeMatrix(
        np.concatenate([m.embeddings for m in matrices])[order],
        candidates,
        np.concatenate([m.logits for m in matrices])[order],
        np.concatenate([m.scores for m in matrices])[order],
        np.concatenate([m.provenance for m in matrices])[order],
        np.concatenate([m.propensity for m in matrices])[order],
        tuple(principals[i] for i in order.tolist()),
        recorded_at[order],
    )
    return MemoryView(matrix, numbers[order], {})
