"""Which shapes a plan runs, and which of them are common enough for a graph of their own.

A forward is padded up to the next of a few sizes, so that few shapes occur and each occurs often.
Padded tokens are masked, padded requests and candidates are dropped: the answer does not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.api.errors import UnavailableError

LENGTH_STEP = 32  # prompts are padded to a multiple
FEWEST_CANDIDATES = 8
REMEMBERED = 4  # shapes noted per graph that is kept

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """least <= n <= most."""

    least: int
    most: int


@dataclass(frozen=True)
class Profile:
    """What a plan accepts: requests, tokens of the longest prompt, candidate rows."""

    batch: Range
    length: Range
    rows: Range


@dataclass(frozen=True)
class Shape:
    """Of one forward: requests, tokens, candidates."""

    batch: int
    length: int
    candidates: int


def check_lengths(profile: Profile, lengths: Sequence[int]) -> None:
    """Raise UnavailableError where a prompt is longer than the plan was built for."""
    if max(lengths) > profile.length.most:
        raise UnavailableError(
            f"a prompt has {max(lengths)} tokens, the plan was built for {profile.length.most};"
            " build it again with this version (`make export`)."
        )


def padded(profile: Profile, batch: int, length: int, candidates: int) -> Shape:
    """The shape that holds this much: powers of two of requests and candidates, multiples of
    LENGTH_STEP of tokens, within the profile. What the profile does not hold is the caller's to
    split (see pieces) or refuse (see check_lengths)."""
    return Shape(
        min(_power_of_two(max(batch, profile.batch.least)), profile.batch.most),
        min(max(_multiple(length), profile.length.least), profile.length.most),
        min(
            max(_power_of_two(candidates), FEWEST_CANDIDATES, profile.rows.least),
            profile.rows.most,
        ),
    )


def pieces(count: int, most: int) -> Iterator[slice]:
    """0..count in slices of at most `most`."""
    return (slice(i, min(i + most, count)) for i in range(0, count, most))


def _multiple(n: int) -> int:
    return -(-n // LENGTH_STEP) * LENGTH_STEP


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class GraphCache(Generic[T]):
    """At most `limit` graphs, those used longest ago dropped; 0 keeps none. For one thread.

    A shape earns a graph when it comes the second time within the last REMEMBERED * limit shapes.
    """

    def __init__(self, limit: int, drop: Callable[[T], None]) -> None:
        self._limit = limit
        self._drop = drop
        self._making = limit > 0
        self._graphs: OrderedDict[Shape, T] = OrderedDict()
        self._seen: OrderedDict[Shape, None] = OrderedDict()

    def get(self, shape: Shape) -> T | None:
        """Its graph, now the one used last."""
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        return self._graphs.get(shape)

    def is_common(self, shape: Shape) -> bool:
        """Note that it came without a graph; whether to make it one."""
        common = shape in self._seen
        self._seen[shape] = None
        self._seen.move_to_end(shape)
        if len(self._seen) > REMEMBERED * self._limit:
            self._seen.popitem(last=False)
        return common and self._making

    def put(self, shape: Shape, graph: T) -> None:
        """Keep it, and drop what does not fit."""
        self._graphs[shape] = graph
        self._seen.pop(shape, None)
        while len(self._graphs) > self._limit:
            self._drop(self._graphs.popitem(last=False)[1])

    def disable(self) -> None:
        """Keep none from here on; those that are kept stay."""
        self._making = False

    def clear(self) -> None:
        """Drop all."""
        while self._graphs:
            self._drop(self._graphs.popitem()[1])

    def __len__(self) -> int:
        return len(self._graphs)
