"""The newest decisions, for any number of readers that come and ask.

The event loop writes without a lock and never waits; a reader that is slower than SIZE decisions
misses some and is told how many. Memory is SIZE entries, however many read.
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
LOOK_S = 0.2  # how old a decision is at most when a reader is told of it
HEARTBEAT_S = 5.0  # finds out who has gone


@dataclass(frozen=True)
class LiveDecision:
    """number: 1, 2, ... since the start. time: Unix, seconds. total_ms: in the server. text: None
    = not shown. Costs in US dollars, None where unknown."""

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


class Feed:
    """add() is for one thread, the rest for any."""

    def __init__(self, *, with_text: bool) -> None:
        self._with_text = with_text
        self._ring: list[LiveDecision | None] = [None] * SIZE
        self._count = 0
        self._ended = Event()

    def add(self, decision: Decision, text: str) -> None:
        """A decision was made; its ranking holds every eligible candidate."""
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
        )
        self._ring[self._count % SIZE] = live
        self._count += 1  # after the entry is there

    def after(self, number: int) -> tuple[list[LiveDecision], int]:
        """(those with a higher number that are still held, how many of them are not)."""
        count = self._count
        wanted = range(max(number, 0), count)
        found = [self._ring[i % SIZE] for i in wanted[-SIZE:]]
        # One that was overwritten meanwhile carries a number beyond `count`.
        held = [d for d in found if d is not None and number < d.number <= count]
        return held, len(wanted) - len(held)

    def events(self, after: int) -> Iterator[bytes]:
        """Server-sent events until end(): each decision beyond the number `after` as JSON, `missed`
        with a count, heartbeats, and empty parts in between. Waits in the reader's thread."""
        if after > self._count:  # of another process
            after = 0
        spoke = 0.0
        while not self._ended.wait(LOOK_S if spoke else 0):
            decisions, missed = self.after(after)
            if missed and after:
                yield b"event: missed\ndata: %d\n\n" % missed
            if decisions:
                after = decisions[-1].number
                yield b"".join(map(_event, decisions))
            elif time.monotonic() - spoke < HEARTBEAT_S:
                yield b""
                continue
            else:
                yield b": still here\n\n"
            spoke = time.monotonic()

    def end(self) -> None:
        """Let every reader go."""
        self._ended.set()


def _event(decision: LiveDecision) -> bytes:
    body = json.dumps(asdict(decision), ensure_ascii=False)  # no line breaks but escaped ones
    return f"id: {decision.number}\ndata: {body}\n\n".encode("utf-8", "replace")
