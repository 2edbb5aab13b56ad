"""Which of the waiting requests go into the next forward."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from engine.api.errors import DeadlineError
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.table import Table

PADDING_SHARE = 0.2  # of a joined forward's rows that may be padding
MAX_OVERTAKEN = 64
TOO_LATE = "Too little of the deadline was left to score it when its turn came."


@dataclass(frozen=True)
class Scored:
    """p: (len(rows),) probabilities in the order of the request's rows; times in seconds."""

    p: Float32Array
    queue_s: float
    forward_s: float
    score_s: float


@dataclass(eq=False, slots=True)
class Work:
    """A request that waits. deadline, arrived: of time.monotonic(). rows: (E,) of the table,
    ascending. size: tokens and candidate rows. overtaken: later ones that were forwarded before."""

    tokens: Int64Array
    table: Table
    rows: Int64Array
    deadline: float
    arrived: float
    result: asyncio.Future[Scored] = field(repr=False)
    size: int
    overtaken: int = 0


@dataclass
class Batch:
    """Requests of one table for one forward. union: (U,) every row of the table that one of them
    needs, ascending. size: tokens and candidate rows, without padding."""

    works: list[Work] = field(default_factory=list)
    union: Int64Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    longest: int = 0
    tokens: int = 0
    deadline: float = float("inf")

    @property
    def size(self) -> int:
        """See above."""
        return self.tokens + len(self.works) * len(self.union)

    def full(self, budget: int) -> bool:
        """Whether nothing at all could join within `budget` rows, padding included."""
        return bool(self.works) and self._padded(self.longest, self.union) > budget

    def join(self, work: Work, budget: int, now: float, row_s: float) -> bool:
        """Add `work` and return True where the forward stays within `budget` rows, PADDING_SHARE
        and, at `row_s` seconds a row, everyone's deadline."""
        alone = not self.works or np.array_equal(work.rows, self.union)
        union = work.rows if alone else np.union1d(self.union, work.rows)
        longest, tokens = max(self.longest, len(work.tokens)), self.tokens + len(work.tokens)
        deadline = min(self.deadline, work.deadline)
        if self.works:
            if work.table is not self.works[0].table:
                return False
            count, padded = len(self.works) + 1, self._padded(longest, union)
            if padded > budget or count * longest - tokens > PADDING_SHARE * padded:
                return False
            rows = padded - (count * longest - tokens)
            if now + row_s * rows > deadline:
                return False
        self.works.append(work)
        self.union, self.longest, self.tokens = union, longest, tokens
        self.deadline = deadline
        return True

    def _padded(self, longest: int, union: Int64Array) -> int:
        return (len(self.works) + 1) * (longest + len(union))


class Queue:
    """What waits, in order of arrival. rows: the sum of its sizes."""

    def __init__(self) -> None:
        self._works: dict[Work, None] = {}
        self.rows = 0

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        """Put it last."""
        self._works[work] = None
        self.rows += work.size

    def remove(self, work: Work) -> None:
        """Take it out, wherever it stands; does nothing where it does not."""
        if work in self._works:
            del self._works[work]
            self.rows -= work.size

    def clear(self) -> list[Work]:
        """Take all out."""
        works, self._works, self.rows = list(self._works), {}, 0
        return works

    def take(self, budget: int, now: float, row_s: float) -> Batch:
        """Take out the next batch: the oldest request, and in order of arrival those that read the
        same table and fit. Those that cannot end in time at `row_s` seconds a row are failed. None
        is overtaken by more than MAX_OVERTAKEN others and those of one more batch."""
        batch, gone, passed = Batch(), list[Work](), list[tuple[Work, int]]()
        for work in self._works:
            if batch.full(budget):
                break
            if work.result.done():
                gone.append(work)
            elif now + row_s * work.size > work.deadline:
                work.result.set_exception(DeadlineError(TOO_LATE))
                gone.append(work)
            elif batch.join(work, budget, now, row_s):
                gone.append(work)
            elif work.overtaken >= MAX_OVERTAKEN:
                break
            else:
                passed.append((work, len(batch.works)))
        for work, before in passed:
            work.overtaken += len(batch.works) - before
        for work in gone:
            self.remove(work)
        return batch
