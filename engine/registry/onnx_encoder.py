"""The capability encoder of a bundle, run by ONNX Runtime when a candidate is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.bundle.arrays import ScoringArrays
from engine.registry.encoder import CapabilityEncoder

PIECE = 16  # texts a run: bounds the memory of a test with many new tasks


def load_encoder(bundle: Path, arrays: ScoringArrays) -> CapabilityEncoder:
    """Open encoder.onnx and its tokenizer."""
    tokenizer = _tokenizer(bundle)
    return CapabilityEncoder(
        load_embedder(bundle),
        lambda text: len(tokenizer.encode(text).ids),
        arrays.encoder_tokens,
        arrays.norms,
        arrays.connector,
    )


def load_embedder(bundle: Path) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """psi: N texts -> (N, E), mean-pooled and normalised."""
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # runs seldom; what it used should go back
    session = ort.InferenceSession(
        bundle / "encoder.onnx", options, providers=["CPUExecutionProvider"]
    )
    return _embedder(session, _tokenizer(bundle))


def _tokenizer(bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bundle / "encoder-tokenizer.json"))


def _embedder(
    session: ort.InferenceSession, tokenizer: Tokenizer
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    def run(texts: Sequence[str]) -> NDArray[np.float32]:
        ids = [e.ids for e in tokenizer.encode_batch(list(texts))]
        tokens = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = 1
        (embedding,) = session.run(None, {"tokens": tokens, "mask": mask})
        return np.asarray(embedding, dtype=np.float32)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [run(texts[i : i + PIECE]) for i in range(0, len(texts), PIECE)]
        return np.concatenate(parts)

    return embed
