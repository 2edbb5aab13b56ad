"""Read outcomes for those who keep them in memory: changes since a position, the newest ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.api.usage import Usage
from engine.registry.stores.outcome_sql import candidate_ids, read_state
from engine.registry.stores.outcome_types import ScoredCandidates, unpack
from engine.registry.stores.sql import Database, Row

BATCH_ROWS = 2000  # as rows in memory at once


@dataclass(frozen=True)
class StorePosition:
    """How far a reader has read.

    number: of the last report or change. deletions: seen so far. newest, newest_at: number and time
    of the newest report, by which a store is recognized that was restored and went on.
    """

    number: int = 0
    deletions: int = 0
    newest: int = 0
    newest_at: float = 0.0


@dataclass(frozen=True, eq=False)
class OutcomeChanges:
    """A step of reading.

    restart: the reader must forget everything first, because the store was restored or replaced.
    floor, ceiling: reports outside of (floor, ceiling] are not used; a negative ceiling is none.
    candidates: code -> ID. lists: number -> content of the lists that instructions name.
    instructions: rows (number, key, principal, candidates, embedding, logits, selected, explored,
    propensity, recorded_at), vectors None if they are not known (any more). reports: rows (number,
    instruction, outcomes, compared, details). remaining: numbers of all reports if some were
    deleted, else None.
    """

    position: StorePosition
    restart: bool
    floor: int
    ceiling: int
    candidates: Mapping[int, str]
    lists: Mapping[int, ScoredCandidates]
    instructions: Sequence[Row]
    reports: Sequence[Row]
    remaining: frozenset[int] | None
    more: bool


def read_changes(db: Database, since: StorePosition, known_lists: Sequence[int]) -> OutcomeChanges:
    """Read up to BATCH_ROWS changes of each kind that came after `since`; `more` says if there are
    others. known_lists: numbers of candidate lists that the reader has."""
    state = read_state(db)
    restart = _is_another(db, state, since)
    if restart:
        since, known_lists = StorePosition(), ()
    instructions = db.run(
        "SELECT version, number, key, principal, candidates, embedding, logits, selected, explored,"
        " propensity, recorded_at FROM memory_instruction WHERE version > ? ORDER BY version"
        " LIMIT ?",
        (since.number, BATCH_ROWS),
    )
    until = int(instructions[-1][0]) if len(instructions) == BATCH_ROWS else state["position"]
    reports = db.run(
        "SELECT number, instruction, outcomes, compared, details, recorded_at FROM memory_report"
        " WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
        (since.number, until, BATCH_ROWS),
    )
    if len(reports) == BATCH_ROWS:
        until = int(reports[-1][0])
        instructions = [row for row in instructions if row[0] <= until]
    more = until < state["position"]
    remaining = None
    if not more and state["deletions"] != since.deletions:
        remaining = frozenset(int(row[0]) for row in db.run("SELECT number FROM memory_report"))
    named = {row[4] for row in instructions if row[4] is not None} - set(known_lists)
    lists = {
        int(number): ScoredCandidates.parse(
            db.run("SELECT content FROM memory_candidate_list WHERE number = ?", (number,))[0][0]
        )
        for number in sorted(named)
    }
    newest = (reports[-1][0], reports[-1][5]) if reports else (since.newest, since.newest_at)
    deletions = since.deletions if more else state["deletions"]
    return OutcomeChanges(
        StorePosition(until, deletions, *newest),
        restart,
        state["floor"],
        state["ceiling"],
        candidate_ids(db),
        lists,
        [row[1:] for row in instructions],
        [row[:5] for row in reports],
        remaining,
        more,
    )


def _is_another(db: Database, state: Mapping[str, int], since: StorePosition) -> bool:
    """Whether the store is not the one that `since` is of, or lost what it had then."""
    if state["position"] < since.number or state["deletions"] < since.deletions:
        return True
    found = db.run("SELECT recorded_at FROM memory_report WHERE number = ?", (since.newest,))
    if found:
        return bool(found[0][0] != since.newest_at)
    return since.newest > 0 and state["deletions"] == since.deletions


@dataclass(frozen=True)
class WaitingInstruction:
    """An instruction whose vectors are missing. text: "" if it was not stored."""

    key: str
    text: str
    recorded_at: float


def read_waiting(db: Database, limit: int) -> list[WaitingInstruction]:
    """Return instructions that wait for their vectors, the newest first."""
    rows = db.run(
        "SELECT key, text, recorded_at FROM memory_instruction WHERE open = 1"
        " ORDER BY number DESC LIMIT ?",
        (limit,),
    )
    return [WaitingInstruction(*row) for row in rows]


@dataclass(frozen=True)
class InstructionOutcomes:
    """What is recorded of an instruction. scores: candidate ID -> score."""

    scores: Mapping[str, float]
    category: str
    recorded_at: float


def read_instructions(db: Database, numbers: Sequence[int]) -> dict[int, InstructionOutcomes]:
    """Return number -> what is recorded, without instructions that were deleted."""
    found, ids = {}, candidate_ids(db)
    for number in numbers:
        rows = db.run(
            "SELECT outcomes, category, recorded_at FROM memory_report WHERE instruction = ?"
            " ORDER BY number",
            (number,),
        )
        if rows:
            scores = {
                ids[int(code)]: float(score) for row in rows for code, score in unpack(row[0])
            }
            category = next((str(row[1]) for row in rows if row[1]), "")
            found[number] = InstructionOutcomes(scores, category, float(rows[0][2]))
    return found


@dataclass(frozen=True)
class StoredFit:
    """A fit that a server listed. It used the reports in (floor, position]. content: as JSON."""

    id: str
    floor: int
    position: int
    created_at: float
    content: str


def read_fits(db: Database, count: int) -> list[StoredFit]:
    """Return the last fits, newest first."""
    rows = db.run(
        "SELECT id, floor, position, created_at, content FROM memory_fit"
        " ORDER BY created_at DESC, id LIMIT ?",
        (count,),
    )
    return [StoredFit(*row) for row in rows]


def read_fit(db: Database, identifier: str) -> StoredFit | None:
    """Return a fit by its ID, or None if it is not listed."""
    rows = db.run(
        "SELECT id, floor, position, created_at, content FROM memory_fit WHERE id = ?",
        (identifier,),
    )
    return StoredFit(*rows[0]) if rows else None


def is_remembered(db: Database, key: str) -> bool:
    """Whether an instruction of that key is recorded, and does not wait for its vectors."""
    rows = db.run("SELECT open FROM memory_instruction WHERE key = ?", (key,))
    return bool(rows) and not rows[0][0]


@dataclass(frozen=True, eq=False)
class RecentReport:
    """What one call recorded.

    candidates: number of the list that the logits belong to. embedding, logits: packed; all three
    are None if the instruction is not remembered. outcomes: candidate ID -> score. usage: candidate
    ID -> of its call. compared: whether it was a comparison. recorded_at: Unix time in seconds.
    """

    candidates: int | None
    embedding: bytes | None
    logits: bytes | None
    outcomes: Mapping[str, float]
    usage: Mapping[str, Usage]
    compared: bool
    recorded_at: float


@dataclass(frozen=True, eq=False)
class RecentReports:
    """The newest reports, newest first. lists: number -> the candidates of that list."""

    reports: Sequence[RecentReport]
    lists: Mapping[int, ScoredCandidates]


def read_position(db: Database) -> tuple[int, int]:
    """Return numbers that change with every report, and with every deletion."""
    state = read_state(db)
    return state["position"], state["deletions"]


def read_recent_reports(db: Database, limit: int) -> RecentReports:
    """Return the newest `limit` reports."""
    rows = db.run(
        "SELECT i.candidates, i.embedding, i.logits, r.outcomes, r.details, r.compared,"
        " r.recorded_at FROM memory_report r JOIN memory_instruction i ON i.number = r.instruction"
        " ORDER BY r.number DESC LIMIT ?",
        (limit,),
    )
    ids = candidate_ids(db) if rows else {}
    reports = [
        RecentReport(
            candidates,
            embedding,
            logits,
            {ids[int(code)]: float(score) for code, score in unpack(outcomes)},
            {name: Usage(**used) for name, used in _usage_of(details).items()},
            bool(compared),
            recorded_at,
        )
        for candidates, embedding, logits, outcomes, details, compared, recorded_at in rows
    ]
    lists = {
        number: ScoredCandidates.parse(
            db.run("SELECT content FROM memory_candidate_list WHERE number = ?", (number,))[0][0]
        )
        for number in sorted({r.candidates for r in reports if r.candidates is not None})
    }
    return RecentReports(reports, lists)


def _usage_of(details: str) -> dict[str, dict[str, Any]]:
    """Return candidate ID -> fields of Usage."""
    usage: dict[str, dict[str, Any]] = json.loads(details).get("usage", {}) if details else {}
    return usage
