"""Choose which of the queued requests share the next forward pass.

Principals share the server by start-time fair queueing (P. Goyal, H. M. Vin and H. Cheng, SIGCOMM
1996): a request starts in virtual time when its principal's previous one ends, or now if that is
later, and the request that starts first goes first. A principal that sends one request at a time
does not wait for the backlog of another, and one that is alone has the whole server. A pass that
runs cannot be interrupted, so a backlog is served in short passes while somebody else is about. If
the queue is full, a newcomer takes the place of the newest request of the principal that holds most
of it (drop from the longest queue; P. E. McKenney, "Stochastic fairness queueing", INFOCOM 1990).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge

import numpy as np

from engine.api.errors import DeadlineError
from engine.bundle.types import Float32Array, Int64Array
from engine.registry.table import Table

MAX_PADDING_SHARE = 0.2  # of the rows of a shared forward pass
MAX_BYPASSED = 64
BACKLOG_RATIO = 4  # requests of one principal to those of another, from which it has a backlog
SHARED_PASS = 1.5  # size of a pass for a principal without a backlog, relative to its request
RECENT_S = 10.0  # since its last request, in which a principal's next one is expected
SHORT_PASS_S = 0.01  # of a pass for a backlog, which another principal can wait for at any time
TOO_LATE = "The remaining deadline was too short to score the request when its turn came."


@dataclass(frozen=True)
class ScoreResult:
    """The probabilities of one request.

    p: (K,), in the order of the request's candidate rows. The times are in seconds. embedding:
    (D,) of the instruction, see BatchScores; None if the request was not scored. match: (K,) what
    the candidates' tests added to the log-odds; None if nothing, or if it was not kept.
    unusualness: see TaskMatch; None if it is unknown.
    """

    p: Float32Array
    queue_s: float
    inference_s: float
    scoring_s: float
    embedding: Float32Array | None = None
    match: Float32Array | None = None
    unusualness: float | None = None


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A queued request.

    tokens: (L,). rows: (K,) candidate rows of `table` to score, ascending. deadline, arrived: of
    time.monotonic(). size: L + K. principal: who asks, "" if that is unknown. bypassed: how many
    later requests were forwarded before it. start: in virtual time, set by RequestQueue.

    The null candidate is not counted: every request has it.
    """

    tokens: Int64Array
    table: Table
    rows: Int64Array
    deadline: float
    arrived: float
    result: asyncio.Future[ScoreResult] = field(repr=False)
    size: int
    principal: str = ""
    bypassed: int = 0
    start: float = 0.0


@dataclass
class Batch:
    """Requests that share a forward pass; all read the same table.

    row_union: (U,) candidate rows that any of the requests needs, ascending. max_length: tokens of
    the longest prompt. num_tokens: of all prompts. deadline: the earliest of the requests. padded:
    whether the backend pads prompts to the longest.
    """

    padded: bool = True
    requests: list[PendingRequest] = field(default_factory=list)
    row_union: Int64Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    max_length: int = 0
    num_tokens: int = 0
    deadline: float = float("inf")

    @property
    def size(self) -> int:
        """Tokens and candidates of all requests, without padding."""
        return self.num_tokens + len(self.requests) * len(self.row_union)

    def is_full(self, budget: float) -> bool:
        """True if no further request fits within `budget` rows, padding included."""
        if not self.requests:
            return False
        return self._padded_size(self.max_length, self.num_tokens, self.row_union) > budget

    def try_add(
        self, request: PendingRequest, budget: float, now: float, seconds_per_row: float
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
            padded_size = self._padded_size(max_length, num_tokens, row_union)
            padding = (len(self.requests) + 1) * max_length - num_tokens if self.padded else 0
            if padded_size > budget or padding > MAX_PADDING_SHARE * padded_size:
                return False
            if now + seconds_per_row * (padded_size - padding) > deadline:
                return False
        self.requests.append(request)
        self.row_union, self.max_length, self.num_tokens = row_union, max_length, num_tokens
        self.deadline = deadline
        return True

    def _padded_size(self, max_length: int, num_tokens: int, row_union: Int64Array) -> int:
        """Rows of the forward pass with one more request."""
        count = len(self.requests) + 1
        return (count * max_length if self.padded else num_tokens) + count * len(row_union)


@dataclass
class PrincipalQueue:
    """The queued requests of one principal, oldest first. size: the sum of their sizes. finish: of
    the last one, in virtual time."""

    requests: dict[PendingRequest, None] = field(default_factory=dict)
    size: int = 0
    finish: float = 0.0


class RequestQueue:
    """The queued requests. size: the sum of their sizes. padded: see Batch."""

    def __init__(self, *, padded: bool = True) -> None:
        self._padded = padded
        self._requests: dict[PendingRequest, None] = {}
        self._principals: dict[str, PrincipalQueue] = {}
        # Principal -> when its last request arrived, and its size; the oldest first.
        self._recent: dict[str, tuple[float, int]] = {}
        self._now = 0.0  # virtual time: the start of the last request that was forwarded
        self.size = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[PendingRequest]:
        """Iterate in the order in which requests are due."""
        if len(self._principals) < 2:
            return iter(self._requests)
        queues = [queue.requests for queue in self._principals.values()]
        return merge(*queues, key=lambda request: request.start)

    def count(self, principal: str) -> int:
        """Return how many requests of a principal are queued."""
        queue = self._principals.get(principal)
        return 0 if queue is None else len(queue.requests)

    def size_before(self, principal: str, size: int) -> int:
        """Return the size of what is forwarded before a new request of `principal`, of this size.

        Of the other principals no more than the same share is due before it.
        """
        if len(self._principals) < 2 and principal in self._principals:
            return self.size
        mine = self._principals.get(principal)
        ahead = 0 if mine is None else mine.size
        return ahead + sum(
            min(queue.size, ahead + size)
            for name, queue in self._principals.items()
            if name != principal
        )

    def add(self, request: PendingRequest) -> None:
        """Append a request."""
        queue = self._principals.setdefault(request.principal, PrincipalQueue())
        request.start = max(self._now, queue.finish)
        queue.finish = request.start + request.size
        queue.requests[request] = None
        queue.size += request.size
        self._recent.pop(request.principal, None)
        self._recent[request.principal] = (request.arrived, request.size)
        self._requests[request] = None
        self.size += request.size

    def remove(self, request: PendingRequest) -> None:
        """Remove a request; do nothing if it is not queued."""
        if request not in self._requests:
            return
        queue = self._principals[request.principal]
        del self._requests[request], queue.requests[request]
        self.size -= request.size
        queue.size -= request.size
        if not queue.requests:
            del self._principals[request.principal]

    def yields_to(self, principal: str) -> bool:
        """Whether a full queue makes room for a request of `principal`."""
        largest = max((len(queue.requests) for queue in self._principals.values()), default=0)
        return largest > self.count(principal) + 1

    def pop_newest_of_largest(self, principal: str) -> PendingRequest | None:
        """Remove the newest request of the principal with most of them, to make room for one of
        `principal`; None if that principal has as many or would have."""
        if not self.yields_to(principal):
            return None
        largest = max(self._principals.values(), key=lambda queue: len(queue.requests))
        newest = next(reversed(largest.requests))
        largest.finish = newest.start
        self.remove(newest)
        return newest

    def clear(self) -> list[PendingRequest]:
        """Remove and return all requests."""
        requests, self._requests, self.size = list(self._requests), {}, 0
        self._principals = {}
        return requests

    def _delays(self, request: PendingRequest, batch: Batch) -> bool:
        """Whether `request` is one of a long backlog, and the pass is for a principal without one:
        that one should not wait for a pass of full size."""
        due = batch.requests[0]
        if request.principal == due.principal:
            return False
        backlog = self.count(request.principal) > BACKLOG_RATIO * self.count(due.principal)
        return backlog and batch.size + request.size > SHARED_PASS * due.size

    def _short_budget(self, principal: str, now: float, seconds_per_row: float) -> float:
        """Return the rows of a pass for a backlog of `principal` that delays no other for long.

        A request may arrive during any pass and waits for its end: of those who asked lately and
        have no backlog, none should wait longer than it takes to score its own request.
        """
        while self._recent and now - next(iter(self._recent.values()))[0] > RECENT_S:
            del self._recent[next(iter(self._recent))]
        backlog = self.count(principal)
        sizes = (
            size
            for other, (_, size) in self._recent.items()
            if other != principal and backlog > BACKLOG_RATIO * max(1, self.count(other))
        )
        smallest = min(sizes, default=float("inf"))
        return max(smallest, SHORT_PASS_S / seconds_per_row) if seconds_per_row else float("inf")

    def next_batch(self, budget: int, now: float, seconds_per_row: float) -> Batch:
        """Remove and return the requests of the next forward pass.

        These are the request that is due and, in the order of the queue, those that fit with it.
        A request that cannot end in time at `seconds_per_row` fails with DeadlineError. A principal
        with a long backlog adds little to the pass of one without. No request is
        bypassed by more than MAX_BYPASSED others and those of one more batch.
        """
        batch, most = Batch(padded=self._padded), float(budget)
        removed, skipped = list[PendingRequest](), list[tuple[PendingRequest, int]]()
        for request in self:
            if batch.is_full(most):
                break
            if batch.requests and self._delays(request, batch):
                continue
            if request.result.done():
                removed.append(request)
            elif now + seconds_per_row * request.size > request.deadline:
                request.result.set_exception(DeadlineError(TOO_LATE))
                removed.append(request)
            elif batch.try_add(request, most, now, seconds_per_row):
                removed.append(request)
                if len(batch.requests) == 1:
                    short = self._short_budget(request.principal, now, seconds_per_row)
                    most = min(most, short)
            elif request.bypassed >= MAX_BYPASSED:
                break
            else:
                skipped.append((request, len(batch.requests)))
        for request, before in skipped:
            request.bypassed += len(batch.requests) - before
        if batch.requests:
            self._now = max(self._now, batch.requests[0].start)
        for request in removed:
            self.remove(request)
        return batch
