"""Pad forward passes to few shapes, and keep CUDA graphs for the shapes that recur.

Padded tokens are masked, and the results of padded requests and candidates are dropped, so padding
does not change a probability.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.api.errors import UnavailableError

LENGTH_STEP = 32  # prompts are padded to a multiple of it
MIN_CANDIDATES = 8
SEEN_PER_GRAPH = 4  # shapes remembered for each graph that may be kept

T = TypeVar("T")


@dataclass(frozen=True)
class SizeRange:
    """min <= n <= max."""

    min: int
    max: int


@dataclass(frozen=True)
class ShapeProfile:
    """The sizes that an engine accepts: requests, tokens of the longest prompt, candidates."""

    batch: SizeRange
    length: SizeRange
    candidates: SizeRange


@dataclass(frozen=True)
class ForwardShape:
    """The sizes of one forward pass: requests, tokens of each prompt, candidates with the null
    one."""

    batch: int
    length: int
    candidates: int


def check_lengths(profile: ShapeProfile, lengths: Sequence[int]) -> None:
    """Raise UnavailableError if a prompt is longer than the engine accepts."""
    if max(lengths) > profile.length.max:
        raise UnavailableError(
            f"A prompt has {max(lengths)} tokens, the TensorRT plan accepts {profile.length.max};"
            " build the bundle again with this version (`make export`)."
        )


def pad_shape(profile: ShapeProfile, batch: int, length: int, candidates: int) -> ForwardShape:
    """Round up requests to a power of two, candidates to one more than a power of two, tokens to a
    multiple of LENGTH_STEP. The one more is the null candidate.

    The result is within the profile. The caller splits what the profile cannot hold (chunk_slices)
    or refuses it (check_lengths).
    """
    return ForwardShape(
        min(_power_of_two(max(batch, profile.batch.min)), profile.batch.max),
        min(max(-(-length // LENGTH_STEP) * LENGTH_STEP, profile.length.min), profile.length.max),
        min(
            max(_power_of_two(max(candidates - 1, MIN_CANDIDATES)) + 1, profile.candidates.min),
            profile.candidates.max,
        ),
    )


def chunk_slices(count: int, size: int) -> Iterator[slice]:
    """Split range(count) into slices of at most `size`."""
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class GraphCache(Generic[T]):
    """A least-recently-used cache of at most `limit` graphs; 0 disables it. Not thread-safe.

    A shape gets a graph when it occurs for the second time within the last SEEN_PER_GRAPH * limit
    shapes without one. drop: called with each graph that is evicted.
    """

    def __init__(self, limit: int, drop: Callable[[T], None]) -> None:
        self._limit = limit
        self._drop = drop
        self._enabled = limit > 0
        self._graphs: OrderedDict[ForwardShape, T] = OrderedDict()
        self._seen: OrderedDict[ForwardShape, None] = OrderedDict()

    def get(self, shape: ForwardShape) -> T | None:
        """Return the graph of a shape and mark it as the most recently used."""
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        return self._graphs.get(shape)

    def seen_before(self, shape: ForwardShape) -> bool:
        """Record a shape that has no graph; return True if it should get one."""
        seen = shape in self._seen
        self._seen[shape] = None
        self._seen.move_to_end(shape)
        if len(self._seen) > SEEN_PER_GRAPH * self._limit:
            self._seen.popitem(last=False)
        return seen and self._enabled

    def put(self, shape: ForwardShape, graph: T) -> None:
        """Store a graph and evict the least recently used ones beyond the limit."""
        self._graphs[shape] = graph
        self._seen.pop(shape, None)
        while len(self._graphs) > self._limit:
            self._drop(self._graphs.popitem(last=False)[1])

    def disable(self) -> None:
        """Store no further graphs; those that are stored stay."""
        self._enabled = False

    def clear(self) -> None:
        """Evict all graphs."""
        while self._graphs:
            self._drop(self._graphs.popitem()[1])

    def __len__(self) -> int:
        return len(self._graphs)
