"""Keep embeddings of instructions in little more than a byte a number.

A block of 64 numbers shares a float16 scale, and each number is an int8 multiple of it. The few
numbers of an embedding that are a hundred times as large as the others cost precision in their own
block alone. Corrections by such embeddings differ from those by float16 ones by less than draws of
the remembered instructions do (docs/explanation/adaptation.md). Shapes: N instructions, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array

BLOCK = 64
MAX_INT8 = 127
MARK = b"\1"  # makes the length odd, which that of float16 numbers never is


def pack_embedding(embedding: NDArray[np.float16]) -> bytes:
    """Encode an embedding (D,): int8 numbers, float16 scales, and MARK.

    One that is not finite, or has no whole blocks, is kept as float16, as earlier versions did.
    """
    numbers = embedding.astype("<f2")
    if len(numbers) % BLOCK or not np.isfinite(numbers).all():
        return bytes(numbers.tobytes())
    blocks = numbers.astype(np.float32).reshape(-1, BLOCK)
    # Rounded up, so that no number exceeds MAX_INT8 scales.
    scales = np.nextafter(
        (np.abs(blocks).max(axis=1) / MAX_INT8).astype("<f2"), np.float16(np.inf)
    ).astype("<f2")
    multiples = np.rint(blocks / scales.astype(np.float32)[:, None]).astype(np.int8)
    return bytes(multiples.tobytes() + scales.tobytes() + MARK)


def unpack_embeddings(packed: NDArray[np.uint8]) -> Float32Array:
    """Decode embeddings that were packed to equal lengths, (N, bytes): (N, D)."""
    count, length = packed.shape
    if length % 2 == 0:
        return np.ascontiguousarray(packed).view("<f2").astype(np.float32)
    blocks = (length - len(MARK)) // (BLOCK + 2)
    multiples = np.ascontiguousarray(packed[:, : blocks * BLOCK]).view(np.int8)
    scales = np.ascontiguousarray(packed[:, blocks * BLOCK : -len(MARK)]).view("<f2")
    found = multiples.reshape(count, blocks, BLOCK) * scales.astype(np.float32)[:, :, None]
    return np.asarray(found.reshape(count, blocks * BLOCK), dtype=np.float32)


def unpack_embedding(packed: bytes) -> Float32Array:
    """Decode one embedding: (D,)."""
    found: Float32Array = unpack_embeddings(np.frombuffer(packed, dtype=np.uint8)[None])[0]
    return found


def repack(kept: bytes | None) -> bytes | None:
    """Encode an embedding that is kept in either form as pack_embedding() does; None if there is
    none, or if it is not finite."""
    if kept is None or len(kept) % 2:
        return kept
    numbers = np.frombuffer(kept, dtype="<f2")
    return pack_embedding(numbers) if np.isfinite(numbers).all() else None
