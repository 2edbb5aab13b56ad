"""Choose which of the queued requests share the next forward pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from engine.api.errors import DeadlineError
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.table import Table

MAX_PADDING_SHARE = 0.2  # of the rows of a shared forward pass
MAX_BYPASSED = 64
TOO_LATE = "The remaining deadline was too short to score the request when its turn came."


@dataclass(frozen=True)
class ScoreResult:
    """The probabilities of one request.

    p: (K,), in the order of the request's candidate rows. The times are in seconds.
    """

    p: Float32Array
    queue_s: float
    inference_s: float
    scoring_s: float


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A queued request.

    tokens: (L,). rows: (K,) candidate rows of `table` to score, ascending. deadline, arrived: of
    time.monotonic(). size: L + K. bypassed: how many later requests were forwarded before it.
    """

    tokens: Int64Array
    table: Table
    rows: Int64Array
    deadline: float
    arrived: float
    result: asyncio.Future[ScoreResult] = field(repr=False)
    size: int
    bypassed: int = 0


@dataclass
class Batch:
    """Requests that share a forward pass; all read the same table.

    row_union: (U,) candidate rows that any of the requests needs, ascending. max_length: tokens of
    the longest prompt. num_tokens: of all prompts. deadline: the earliest of the requests.
    """

    requests: list[PendingRequest] = field(default_factory=list)
    row_union: Int64Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    max_length: int = 0
    num_tokens: int = 0
    deadline: float = float("inf")

    @property
    def size(self) -> int:
        """Tokens and candidates of all requests, without padding."""
        return self.num_tokens + len(self.requests) * len(self.row_union)

    def is_full(self, budget: int) -> bool:
        """True if no further request fits within `budget` rows, padding included."""
        return bool(self.requests) and self._padded_size(self.max_length, self.row_union) > budget

    def try_add(
        self, request: PendingRequest, budget: int, now: float, seconds_per_row: float
    ) -> bool:
        """Add `request` unless the forward pass would then take too much.

        The first request is always added. A further one must read the same table and must leave the
        pass within `budget` rows, MAX_PADDING_SHARE, and the deadline of every request.
        """
        same = not self.requests or np.array_equal(request.rows, self.row_union)
        row_union = request.rows if same else np.union1d(self.row_union, request.rows)
        max_length = max(self.max_length, len(request.tokens))
        num_tokens = self.num_tokens + len(request.tokens)
        deadline = min(self.deadline, request.deadline)
        if self.requests:
            if request.table is not self.requests[0].table:
                return False
            padded_size = self._padded_size(max_length, row_union)
            padding = (len(self.requests) + 1) * max_length - num_tokens
            if padded_size > budget or padding > MAX_PADDING_SHARE * padded_size:
                return False
            if now + seconds_per_row * (padded_size - padding) > deadline:
                return False
        self.requests.append(request)
        self.row_union, self.max_length, self.num_tokens = row_union, max_length, num_tokens
        self.deadline = deadline
        return True

    def _padded_size(self, max_length: int, row_union: Int64Array) -> int:
        """Rows of the forward pass with one more request."""
        return (len(self.requests) + 1) * (max_length + len(row_union))


class RequestQueue:
    """The queued requests in order of arrival. size: the sum of their sizes."""

    def __init__(self) -> None:
        self._requests: dict[PendingRequest, None] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: PendingRequest) -> None:
        """Append a request."""
        self._requests[request] = None
        self.size += request.size

    def remove(self, request: PendingRequest) -> None:
        """Remove a request; do nothing if it is not queued."""
        if request in self._requests:
            del self._requests[request]
            self.size -= request.size

    def clear(self) -> list[PendingRequest]:
        """Remove and return all requests."""
        requests, self._requests, self.size = list(self._requests), {}, 0
        return requests

    def next_batch(self, budget: int, now: float, seconds_per_row: float) -> Batch:
        """Remove and return the requests of the next forward pass.

        These are the oldest request and, in order of arrival, those that fit with it. A request
        that cannot end in time at `seconds_per_row` fails with DeadlineError. No request is
        bypassed by more than MAX_BYPASSED others and those of one more batch.
        """
        batch = Batch()
        removed, skipped = list[PendingRequest](), list[tuple[PendingRequest, int]]()
        for request in self._requests:
            if batch.is_full(budget):
                break
            if request.result.done():
                removed.append(request)
            elif now + seconds_per_row * request.size > request.deadline:
                request.result.set_exception(DeadlineError(TOO_LATE))
                removed.append(request)
            elif batch.try_add(request, budget, now, seconds_per_row):
                removed.append(request)
            elif request.bypassed >= MAX_BYPASSED:
                break
            else:
                skipped.append((request, len(batch.requests)))
        for request, before in skipped:
            request.bypassed += len(batch.requests) - before
        for request in removed:
            self.remove(request)
        return batch
