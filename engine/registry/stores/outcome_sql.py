"""The SQL of outcomes that SQLite and PostgreSQL share: instructions, reports on them, and fits.

A report is what one call recorded: outcomes of one instruction. Reports and changes of instructions
are numbered in the order of their commits, by one counter (`position`), so that a reader who knows
one position finds all that came later. `?` stands for a value.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.api.errors import AlreadyExistsError, DecisionNotFoundError, ModelsatError
from engine.api.usage import Usage
from engine.registry.embedding_bytes import pack_embedding
from engine.registry.stores.outcome_bounds import PrincipalShares
from engine.registry.stores.outcome_types import (
    OutcomeLimits,
    OutcomeReport,
    RecordedOutcome,
    ScoredInstruction,
    pack,
    pack_details,
    unpack,
)
from engine.registry.stores.sql import Database, Row

TABLES = (
    "CREATE TABLE memory_state (key TEXT PRIMARY KEY, value {int} NOT NULL){end}",
    "CREATE TABLE memory_candidate (code {int} PRIMARY KEY, id TEXT NOT NULL UNIQUE){end}",
    "CREATE TABLE memory_candidate_list (number {int} PRIMARY KEY, content TEXT NOT NULL UNIQUE)"
    "{end}",
    "CREATE TABLE memory_instruction (number {int} PRIMARY KEY, key TEXT NOT NULL UNIQUE,"
    " principal TEXT NOT NULL, text TEXT NOT NULL, candidates {int}, embedding {blob},"
    " logits {blob}, selected {int} NOT NULL, explored {int} NOT NULL, propensity {real} NOT NULL,"
    " open {int} NOT NULL, version {int} NOT NULL, recorded_at {real} NOT NULL){end}",
    "CREATE INDEX memory_instruction_version ON memory_instruction (version)",
    "CREATE INDEX memory_instruction_open ON memory_instruction (number) WHERE open = 1",
    "CREATE INDEX memory_instruction_kept ON memory_instruction (principal, number)"
    " WHERE embedding IS NOT NULL",
    "CREATE TABLE memory_report (number {int} PRIMARY KEY, instruction {int} NOT NULL,"
    " principal TEXT NOT NULL, outcomes {blob} NOT NULL, count {int} NOT NULL,"
    " compared {int} NOT NULL, with_text {int} NOT NULL, category TEXT NOT NULL,"
    " details TEXT NOT NULL, recorded_at {real} NOT NULL){end}",
    "CREATE INDEX memory_report_instruction ON memory_report (instruction)",
    "CREATE INDEX memory_report_principal ON memory_report (principal, number)",
    "CREATE INDEX memory_report_age ON memory_report (recorded_at)",
    "CREATE TABLE memory_share (principal TEXT PRIMARY KEY, outcomes {int} NOT NULL,"
    " instructions {int} NOT NULL, bytes {int} NOT NULL){end}",
    "CREATE TABLE memory_fit (id TEXT PRIMARY KEY, floor {int} NOT NULL, position {int} NOT NULL,"
    " created_at {real} NOT NULL, content TEXT NOT NULL){end}",
)
# selected: a code, 0 if none was. deletions: counts deletions of rows. floor, ceiling: reports
# outside of (floor, ceiling] are not used; a negative ceiling is none.
STATE = {"position": 0, "deletions": 0, "floor": 0, "ceiling": -1}
RECENT_FITS, HOURLY_FITS = 100, 100  # kept: the last ones, and before them the last of each hour
HOUR_S = 3600.0
MAX_UNUSED_LISTS = 100  # finding them reads all instructions


class OutcomeWriter:
    """Writes outcomes in one transaction, which the caller has opened and which excludes others.

    Call finish() at the end.
    """

    def __init__(self, db: Database, limits: OutcomeLimits) -> None:
        self._db = db
        self._limits = limits
        self._state = read_state(db)
        self._position = self._state["position"]
        self._codes: dict[str, int] = {}
        self._lists: dict[str, int] = {}
        self._shares = PrincipalShares(db, limits, self._next)

    def record(self, report: OutcomeReport, only_known: bool) -> int | ModelsatError:
        """Record what is new of a report.

        only_known: answer for what this principal has recorded already, and record nothing new.

        Returns:
            The number of outcomes that were recorded, or the error to raise: AlreadyExistsError if
            another score is known, DecisionNotFoundError as only_known says.
        """
        number = self._find(report.key)
        known = {} if number is None else self._known(number)
        first, new = report.outcomes[0], []
        for outcome in report.outcomes:
            score, principal = known.get(outcome.candidate, (None, ""))
            if only_known and (score is None or principal != outcome.principal):
                return DecisionNotFoundError(outcome.decision_id)
            if score is None:
                new.append(outcome)
            elif score != outcome.score:
                return _conflict(outcome, score)
        if not new:
            return 0
        now = time.time()
        if number is None:
            number = self._add_instruction(first, now, report.scored)
        else:
            self._add_text(number, first.text)
            if report.scored is not None:
                self._fill(number, report.scored)
        self._add_report(number, new, now)
        return len(new)

    def fill(self, key: str, scored: ScoredInstruction) -> bool:
        """Add the vectors of an instruction that waits for them; False if none of that key does."""
        rows = self._db.run(
            "SELECT number FROM memory_instruction WHERE key = ? AND open = 1", (key,)
        )
        return bool(rows) and self._fill(rows[0][0], scored)

    def give_up(self, before: float) -> None:
        """Wait no longer for the vectors of instructions recorded before that time."""
        self._db.run(
            "UPDATE memory_instruction SET open = 0 WHERE open = 1 AND recorded_at < ?", (before,)
        )

    @property
    def position(self) -> int:
        """Number of the last report or change so far."""
        return self._position

    def set_state(self, values: Mapping[str, int]) -> None:
        """Set floor or ceiling."""
        for key, value in values.items():
            self._db.run("UPDATE memory_state SET value = ? WHERE key = ?", (value, key))

    def add_fit(self, identifier: str, floor: int, position: int, content: str) -> None:
        """List a fit, unless it is listed. Of old ones, one an hour is kept to return to."""
        self._db.run(
            "INSERT INTO memory_fit VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (identifier, floor, position, time.time(), content),
        )
        fits = self._db.run("SELECT id, created_at FROM memory_fit ORDER BY created_at DESC, id")
        old = fits[RECENT_FITS:]
        hourly: dict[float, str] = {}
        for fit, created_at in old:
            hourly.setdefault(created_at // HOUR_S, fit)
        kept = set(list(hourly.values())[:HOURLY_FITS])
        unlisted = [(fit,) for fit, _ in old if fit not in kept]
        self._db.run_many("DELETE FROM memory_fit WHERE id = ?", unlisted)

    def delete_unused_lists(self) -> None:
        """Delete candidate lists that no instruction names, if there are many lists."""
        count = self._db.run("SELECT COUNT(*) FROM memory_candidate_list")[0][0]
        if count > MAX_UNUSED_LISTS:
            self._db.run(
                "DELETE FROM memory_candidate_list WHERE number NOT IN (SELECT candidates"
                " FROM memory_instruction WHERE candidates IS NOT NULL)"
            )

    def delete(self, candidate: str, principal: str) -> int:
        """Delete what reports_of() finds; return how many outcomes. A comparison keeps the outcomes
        of its other candidates."""
        found = list(reports_of(self._db, candidate, principal))
        for (number, _, owner, _), kept, details in found:
            if kept:
                # Under a new number, so that servers read it again.
                self._db.run(
                    "INSERT INTO memory_report SELECT ?, instruction, principal, ?, ?, compared,"
                    " with_text, category, ?, recorded_at FROM memory_report WHERE number = ?",
                    (self._next(), pack(kept), len(kept), details, number),
                )
                self._shares.add(owner, outcomes=len(kept))
        self._shares.delete([report for report, _, _ in found])
        return sum(report[-1] - len(kept) for report, kept, _ in found)

    def insert_old(self, outcome: RecordedOutcome, recorded_at: float) -> None:
        """Record an outcome of an earlier version, which is known to be new."""
        number = self._find(outcome.decision_id)
        if number is None:
            number = self._add_instruction(outcome, recorded_at, None, waits=False)
        else:
            self._add_text(number, outcome.text)
        self._add_report(number, [outcome], recorded_at)

    def finish(self) -> None:
        """Keep the bounds, and write the counters."""
        self._shares.keep_bounds()
        deletions = self._state["deletions"] + self._shares.deletions
        self.set_state({"position": self._position, "deletions": deletions})

    def _next(self) -> int:
        self._position += 1
        return self._position

    def _find(self, key: str) -> int | None:
        rows = self._db.run("SELECT number FROM memory_instruction WHERE key = ?", (key,))
        return int(rows[0][0]) if rows else None

    def _known(self, number: int) -> dict[str, tuple[float, str]]:
        """Return candidate ID -> (score, principal) of what is recorded for an instruction."""
        rows = self._db.run(
            "SELECT principal, outcomes FROM memory_report WHERE instruction = ?", (number,)
        )
        ids = candidate_ids(self._db) if rows else {}
        return {
            ids[int(code)]: (float(score), str(principal))
            for principal, blob in rows
            for code, score in unpack(blob)
        }

    def _add_instruction(
        self,
        first: RecordedOutcome,
        now: float,
        scored: ScoredInstruction | None,
        waits: bool = True,
    ) -> int:
        """Add an instruction; one row at once, because a row that grows later splits its page."""
        number = self._next()
        is_open = int(waits and scored is None)
        vectors = (None, None, None, 0, 0, 1.0) if scored is None else self._vectors(scored)
        self._db.run(
            "INSERT INTO memory_instruction VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                first.decision_id,
                first.principal,
                _without_nul(first.text),
                *vectors,
                is_open,
                number,
                now,
            ),
        )
        self._shares.add_vectors(first.principal, vectors[1:3])
        return number

    def _add_text(self, number: int, text: str) -> None:
        if text:
            self._db.run(
                "UPDATE memory_instruction SET text = ? WHERE number = ? AND text = ''",
                (_without_nul(text), number),
            )

    def _add_report(self, number: int, new: Sequence[RecordedOutcome], now: float) -> None:
        first = new[0]
        blob = pack([(self._code(o.candidate), o.score) for o in new])
        self._db.run(
            "INSERT INTO memory_report VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._next(),
                number,
                first.principal,
                blob,
                len(new),
                int(first.compared),
                int(bool(first.text)),
                _without_nul(first.category),
                pack_details(new),
                now,
            ),
        )
        self._shares.add(first.principal, outcomes=len(new))

    def _fill(self, number: int, scored: ScoredInstruction) -> bool:
        ((principal, is_open),) = self._db.run(
            "SELECT principal, open FROM memory_instruction WHERE number = ?", (number,)
        )
        if not is_open:
            return False
        self._db.run(
            "UPDATE memory_instruction SET candidates = ?, embedding = ?, logits = ?, selected = ?,"
            " explored = ?, propensity = ?, open = 0, version = ? WHERE number = ?",
            (*(vectors := self._vectors(scored)), self._next(), number),
        )
        self._shares.add_vectors(principal, vectors[1:3])
        return True

    def _vectors(self, scored: ScoredInstruction) -> tuple[Any, ...]:
        """Return the columns from `candidates` to `propensity`."""
        selected = self._code(scored.selected) if scored.selected else 0
        choice = selected, int(scored.explored), scored.propensity
        if not self._limits.memory_bytes:
            return None, None, None, *choice
        logits = np.ascontiguousarray(scored.logits, dtype="<f2").tobytes()
        candidates = self._candidate_list(scored.candidates.content)
        return candidates, pack_embedding(scored.embedding), logits, *choice

    def _code(self, candidate: str) -> int:
        """Return the code that stands for a candidate's ID; codes are small, and stay."""
        if candidate not in self._codes:
            rows = self._db.run("SELECT code FROM memory_candidate WHERE id = ?", (candidate,))
            if not rows:
                rows = self._db.run("SELECT COALESCE(MAX(code), 0) + 1 FROM memory_candidate")
                self._db.run("INSERT INTO memory_candidate VALUES (?, ?)", (rows[0][0], candidate))
            self._codes[candidate] = int(rows[0][0])
        return self._codes[candidate]

    def _candidate_list(self, content: str) -> int:
        """Return the number that stands for a list; the number of a deleted one never returns."""
        if content not in self._lists:
            rows = self._db.run(
                "SELECT number FROM memory_candidate_list WHERE content = ?", (content,)
            )
            if not rows:
                rows = [(self._next(),)]
                self._db.run(
                    "INSERT INTO memory_candidate_list VALUES (?, ?)", (rows[0][0], content)
                )
            self._lists[content] = int(rows[0][0])
        return self._lists[content]


def create_tables(db: Database, types: Mapping[str, str]) -> None:
    """Create the tables of an empty store. types: names of its column types, see TABLES."""
    for statement in TABLES:
        db.run(statement.format(**types))
    db.run_many("INSERT INTO memory_state VALUES (?, ?)", STATE.items())


def read_state(db: Database) -> dict[str, int]:
    """Return the counters; see STATE."""
    return {str(key): int(value) for key, value in db.run("SELECT key, value FROM memory_state")}


def candidate_ids(db: Database) -> dict[int, str]:
    """Return code -> candidate ID."""
    return {int(code): str(name) for code, name in db.run("SELECT code, id FROM memory_candidate")}


def read_outcomes(
    db: Database, after: int = 0, limit: int = 1000
) -> tuple[list[RecordedOutcome], int]:
    """Return the outcomes of the next `limit` reports after a number, in the order in which they
    were recorded, and the number of the last; no outcomes at the end."""
    rows = db.run(
        "SELECT r.number, i.key, i.text, r.principal, r.outcomes, r.compared, r.with_text,"
        " r.category, r.details, i.selected, i.propensity"
        " FROM memory_report r JOIN memory_instruction i"
        " ON i.number = r.instruction WHERE r.number > ? ORDER BY r.number LIMIT ?",
        (after, limit),
    )
    ids = candidate_ids(db) if rows else {}
    return [o for row in rows for o in _outcomes_of(row, ids)], rows[-1][0] if rows else after


def _outcomes_of(row: Row, ids: Mapping[int, str]) -> Iterable[RecordedOutcome]:
    _, key, text, principal, blob, compared, with_text, category, details, *choice = row
    selected, propensity = choice
    content = json.loads(details) if details else {}
    common = RecordedOutcome(
        key,
        "",
        0.0,
        text if with_text else "",
        category,
        principal,
        compared=bool(compared),
        grader=content.get("grader", ""),
        disagreement=content.get("disagreement"),
    )
    usage = content.get("usage", {})
    for code, score in unpack(blob):
        name = ids[int(code)]
        used = Usage(**usage[name]) if name in usage else None
        drawn = float(propensity) if code == selected else None
        yield replace(common, candidate=name, score=float(score), usage=used, propensity=drawn)


def reports_of(
    db: Database, candidate: str, principal: str
) -> Iterator[tuple[Row, list[tuple[int, float]], str]]:
    """Yield the reports with outcomes of a candidate, of a principal, or of both.

    Empty names are not compared. Yields rows (number, instruction, principal, count), and the
    outcomes and the details of the other candidates in the report.
    """
    rows = db.run(
        "SELECT number, instruction, principal, count, outcomes, details FROM memory_report"  # noqa: S608
        f"{' WHERE principal = ?' if principal else ''}",
        (principal,) if principal else (),
    )
    code = {name: code for code, name in candidate_ids(db).items()}.get(candidate)
    for *report, blob, details in rows:
        kept = [pair for pair in unpack(blob) if pair[0] != code] if candidate else []
        if len(kept) < report[-1]:
            content = json.loads(details) if details else {}
            content.get("usage", {}).pop(candidate, None)
            yield tuple(report), kept, json.dumps(content, separators=(",", ":")) if content else ""


def _without_nul(text: str) -> str:
    """PostgreSQL stores no U+0000 in a text: one would fail all reports of a transaction."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _conflict(outcome: RecordedOutcome, score: float) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"decisions/{outcome.decision_id}/outcomes/{outcome.candidate}",
        f"has score {score}, the request says {outcome.score}; the first one is kept.",
        "modelsat.v1.Outcome",
    )
