"""The latest decisions, for any number of readers.

The event loop writes without a lock and never waits. A reader that falls more than SIZE decisions
behind misses some, and learns how many. Memory is SIZE entries for any number of readers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from threading import Event

from engine.routing.decision import Decision

SIZE = 256
MAX_TEXT_CHARS = 500
POLL_S = 0.2  # delay until a reader gets a decision
HEARTBEAT_S = 5.0  # detects readers that have disconnected


@dataclass(frozen=True)
class LiveDecision:
    """number: 1, 2, ... since the start. time: Unix time in seconds. total_ms: time in the server.
    text: None if not shown. Costs are in US dollars, None if unknown. base_probability: None if the
    probability was not corrected; unadapted: see Decision."""

    number: int
    time: float
    decision_id: str
    selected: str
    kind: str
    reason: str
    probability: float
    expected_cost_usd: float | None
    candidates: int
    revision: int
    input_tokens: int
    ood_score: float | None
    total_ms: float
    text: str | None
    base_probability: float | None
    unadapted: str


class Feed:
    """add() is for one thread, everything else for any."""

    def __init__(self, *, with_text: bool) -> None:
        self._with_text = with_text
        self._ring: list[LiveDecision | None] = [None] * SIZE
        self._count = 0
        self._ended = Event()

    def add(self, decision: Decision, text: str) -> None:
        """Add a decision; its ranking holds every eligible candidate."""
        first = decision.ranking[0]
        live = LiveDecision(
            number=self._count + 1,
            time=time.time(),
            decision_id=decision.id,
            selected=decision.selected.id,
            kind=decision.kind,
            reason=decision.reason,
            probability=first.probability,
            expected_cost_usd=first.expected_cost_usd,
            candidates=len(decision.ranking),
            revision=decision.revision,
            input_tokens=decision.prompt.input_tokens,
            ood_score=decision.prompt.ood_score,
            total_ms=1000 * decision.timing["total"],
            text=text[:MAX_TEXT_CHARS] if self._with_text else None,
            base_probability=first.base_probability,
            unadapted=decision.unadapted,
        )
        self._ring[self._count % SIZE] = live
        self._count += 1  # only once the entry is stored

    def after(self, number: int) -> tuple[list[LiveDecision], int]:
        """Return decisions with a higher number, and how many of those are no longer kept."""
        count = self._count
        wanted = range(max(number, 0), count)
        entries = [self._ring[i % SIZE] for i in wanted[-SIZE:]]
        # One that was overwritten meanwhile carries a number beyond `count`.
        kept = [d for d in entries if d is not None and number < d.number <= count]
        return kept, len(wanted) - len(kept)

    def events(self, after: int) -> Iterator[bytes]:
        """Yield server-sent events until end(): each decision after the number `after` as JSON,
        `missed` with a count, heartbeats, and empty parts between. Waits in the reader's thread."""
        if after > self._count:  # of another process
            after = 0
        last_sent = 0.0
        while not self._ended.wait(POLL_S if last_sent else 0):
            decisions, missed = self.after(after)
            if missed and after:
                yield b"event: missed\ndata: %d\n\n" % missed
            if decisions:
                after = decisions[-1].number
                yield b"".join(map(_event, decisions))
            elif time.monotonic() - last_sent < HEARTBEAT_S:
                yield b""
                continue
            else:
                yield b": heartbeat\n\n"
            last_sent = time.monotonic()

    def end(self) -> None:
        """End every reader's events."""
        self._ended.set()


def _event(decision: LiveDecision) -> bytes:
    body = json.dumps(asdict(decision), ensure_ascii=False)  # no line breaks but escaped ones
    return f"id: {decision.number}\ndata: {body}\n\n".encode("utf-8", "replace")
