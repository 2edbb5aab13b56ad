"""Who may record which outcomes: of own decisions and registered candidates, at a bounded rate.

The roles admin and outcomes may report on everybody's decisions, as a judge does that reads the log
of a gateway. Without tokens every caller is the same one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.adaptation.recent_decisions import RecentDecisions
from engine.adaptation.vectors.text_scorer import TextScorer
from engine.api.candidate import NAME_PREFIX
from engine.api.errors import NotFoundError, OverloadedError
from engine.api.request_context import ROLE
from engine.api.usage import Usage
from engine.registry.outcome_changes import is_remembered
from engine.registry.stores.outcome_types import OutcomeReport, RecordedOutcome, ScoredInstruction
from engine.registry.stores.outcomes import OutcomeStore
from engine.registry.table import Table
from engine.routing.health import EVERYBODY, CandidateHealth
from engine.serving.auth.decision_ids import DecisionIds

FOR_EVERYBODY = frozenset({"admin", "outcomes"})
RATE_PER_S, BURST = 500.0, 5000.0  # outcomes of one principal
COMPARED_PER_CALL = 10  # candidates of a comparison that count as one outcome
MAX_PRINCIPALS = 1000  # whose rates are remembered; the least recent one begins again


class OutcomeGate:
    """Checks outcomes, adds what the server knows of their instruction, and records them. For one
    event loop."""

    def __init__(
        self,
        store: OutcomeStore,
        decisions: DecisionIds,
        table: Callable[[], Table],
        recent: RecentDecisions | None = None,
        scorer: TextScorer | None = None,
        health: CandidateHealth | None = None,
    ) -> None:
        """Record into `store`.

        Args:
            store: of the outcomes.
            decisions: recognizes decision IDs.
            table: returns the candidates that are registered now.
            recent: the decisions that are remembered.
            scorer: scores texts that were not routed here; None records them without vectors.
            health: receives which calls failed, and how long they took.
        """
        self._health = CandidateHealth() if health is None else health
        self._store = store
        self._decisions = decisions
        self._table = table
        self._recent = recent
        self._scorer = scorer
        self._rates = Rates()

    async def record(
        self,
        outcomes: Sequence[RecordedOutcome],
        text: str = "",
        deadline: float = float("inf"),
    ) -> int:
        """Record outcomes of one instruction for the caller of this task; see
        OutcomeStore.record_report.

        Args:
            outcomes: at least one, each of another candidate. Without a decision ID, they are of
                `text`.
            text: the instruction, if it was not routed here. It is stored only as far as the
                outcomes hold it.
            deadline: of time.monotonic(), for scoring the text.

        Raises:
            DecisionNotFoundError: the decision is not the caller's.
            NotFoundError: a candidate is not registered.
            OverloadedError: the caller records too much at once, or the text cannot be scored now.
        """
        recorded = await self._record(outcomes, text, deadline)
        if recorded:
            self._report(outcomes)
        return recorded

    def _report(self, outcomes: Sequence[RecordedOutcome]) -> None:
        """Tell `health` how the calls of new outcomes ended.

        The score of a text, without usage, may be of any time: it is no news of a call.
        """
        scope = scope_of(outcomes[0].principal, ROLE.get())
        for outcome in outcomes:
            if outcome.usage is None and not outcome.decision_id:
                continue
            usage = outcome.usage or Usage()
            self._health.report(outcome.candidate, usage.error, scope, usage.latency_s)

    async def _record(self, outcomes: Sequence[RecordedOutcome], text: str, deadline: float) -> int:
        first = outcomes[0]
        self._rates.take(first.principal, -(-len(outcomes) // COMPARED_PER_CALL))
        if not first.decision_id:
            return await self._record_text(outcomes, text, deadline)
        identifier, principal = first.decision_id, first.principal
        if ROLE.get() in FOR_EVERYBODY:
            allowed = self._decisions.is_ours(identifier)
        else:
            allowed = self._decisions.is_of(identifier, principal)
        if allowed:
            self._require_registered(outcomes)
        recent = None if self._recent is None or not allowed else self._recent.get(identifier)
        report = OutcomeReport(outcomes, None if recent is None else recent.scored)
        # Of what the caller recorded before, a repetition is answered as ever: its ID may be of a
        # version that did not sign them.
        return await self._store.record_report(report, only_known=not allowed)

    async def _record_text(
        self, outcomes: Sequence[RecordedOutcome], text: str, deadline: float
    ) -> int:
        """Record outcomes of a text; what is recorded already is not scored again."""
        self._require_registered(outcomes)
        key = self._decisions.of_text(text, outcomes[0].principal)
        outcomes = [replace(outcome, decision_id=key) for outcome in outcomes]
        scored: ScoredInstruction | None = None
        if self._scorer is not None and not await self._store.read(
            lambda db: is_remembered(db, key)
        ):
            scored = await self._scorer.score(text, deadline)
        return await self._store.record_report(OutcomeReport(outcomes, scored))

    def _require_registered(self, outcomes: Sequence[RecordedOutcome]) -> None:
        rows = self._table().rows
        for outcome in outcomes:
            if outcome.candidate not in rows:
                raise NotFoundError(NAME_PREFIX + outcome.candidate)


def scope_of(principal: str, role: str) -> str:
    """Return for whose requests the reports of a caller count; see CandidateHealth."""
    return EVERYBODY if role in FOR_EVERYBODY else principal


class Rates:
    """A bucket of BURST outcomes for each principal, filled at RATE_PER_S."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, as of)

    def take(self, principal: str, count: int = 1) -> None:
        """Take `count` outcomes; raises OverloadedError if the bucket does not hold them."""
        now = time.monotonic()
        left, since = self._buckets.pop(principal, (BURST, now))
        left = min(BURST, left + (now - since) * RATE_PER_S)
        enough = left >= count
        self._buckets[principal] = (left - count if enough else left, now)
        if len(self._buckets) > MAX_PRINCIPALS:
            self._buckets.popitem(last=False)
        if not enough:
            retry_s = (count - left) / RATE_PER_S
            raise OverloadedError(int(BURST), int(BURST), retry_s, "outcomes of this caller")
