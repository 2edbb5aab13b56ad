"""Who may record which outcomes: of own decisions and registered candidates, at a bounded rate.

The roles admin and outcomes may report on everybody's decisions, as a judge does that reads the log
of a gateway. Without tokens every caller is the same one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from engine.api.candidate import NAME_PREFIX
from engine.api.errors import NotFoundError, OverloadedError
from engine.api.request_context import ROLE
from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome
from engine.registry.table import Table
from engine.serving.auth.decision_ids import DecisionIds

FOR_EVERYBODY = frozenset({"admin", "outcomes"})
RATE_PER_S, BURST = 500.0, 5000.0  # outcomes of one principal
MAX_PRINCIPALS = 1000  # whose rates are remembered; the least recent one begins again


class OutcomeGate:
    """Checks an outcome, and records it. For one event loop."""

    def __init__(
        self, store: OutcomeStore, decisions: DecisionIds, table: Callable[[], Table]
    ) -> None:
        self._store = store
        self._decisions = decisions
        self._table = table
        self._rates = Rates()

    async def record(self, outcome: RecordedOutcome) -> bool:
        """Record `outcome` for the caller of this task; see OutcomeStore.record.

        Raises:
            DecisionNotFoundError: the decision is not the caller's.
            NotFoundError: the candidate is not registered.
            OverloadedError: the caller records too much at once.
        """
        self._rates.take(outcome.principal)
        identifier, principal = outcome.decision_id, outcome.principal
        if ROLE.get() in FOR_EVERYBODY:
            allowed = self._decisions.is_ours(identifier)
        else:
            allowed = self._decisions.is_of(identifier, principal)
        registered = outcome.candidate in self._table().rows
        if allowed and not registered:
            raise NotFoundError(NAME_PREFIX + outcome.candidate)
        # Of what the caller recorded before, a repetition is answered as ever: its ID may be of a
        # version that did not sign them.
        return await self._store.record(outcome, only_known=not allowed)


class Rates:
    """A bucket of BURST outcomes for each principal, filled at RATE_PER_S."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, as of)

    def take(self, principal: str) -> None:
        """Take one outcome; raises OverloadedError if the bucket is empty."""
        now = time.monotonic()
        left, since = self._buckets.pop(principal, (BURST, now))
        left = min(BURST, left + (now - since) * RATE_PER_S)
        self._buckets[principal] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MAX_PRINCIPALS:
            self._buckets.popitem(last=False)
        if left < 1:
            retry_s = (1 - left) / RATE_PER_S
            raise OverloadedError(int(BURST), int(BURST), retry_s, "outcomes of this caller")
