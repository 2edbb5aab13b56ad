"""Pad forward passes to few shapes, of which the usual ones get CUDA graphs at start.

Padded tokens are masked, and the results of padded requests and candidates are dropped, so padding
does not change a probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.api.errors import UnavailableError

LENGTH_STEP = 64  # prompts are padded to a multiple of it
MIN_CANDIDATES = 16
USUAL_CANDIDATES = (16, 32, 64, 128)


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


def usual_shapes(profile: ShapeProfile) -> list[ForwardShape]:
    """Return every shape that pad_shape() gives for at most 128 candidates, small batches first."""
    last = profile.batch.max
    batches = [*(1 << n for n in range((last - 1).bit_length())), last]
    lengths = range(LENGTH_STEP, profile.length.max + LENGTH_STEP, LENGTH_STEP)
    shapes = (
        pad_shape(profile, batch, min(length, profile.length.max), candidates + 1)
        for batch in batches
        for candidates in USUAL_CANDIDATES
        for length in lengths
    )
    return list(dict.fromkeys(shapes))


def chunk_slices(count: int, size: int) -> Iterator[slice]:
    """Split range(count) into slices of at most `size`."""
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
