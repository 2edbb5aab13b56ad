"""The capability encoder of a bundle, run by ONNX Runtime when a candidate is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.contract.arrays import ScoringArrays
from engine.contract.bundle import Manifest
from engine.registry.encoder import CapabilityEncoder

ENCODER_TOKENS = 512  # positions of BERT-family encoders; a longer text is an error, never cut
PIECE = 16  # texts a run: bounds the memory of a test with many new tasks


def load_encoder(bundle: Path, manifest: Manifest, arrays: ScoringArrays) -> CapabilityEncoder:
    """Open encoder.onnx and its tokenizer."""
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # runs seldom; what it used should go back
    session = ort.InferenceSession(
        bundle / "encoder.onnx", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(bundle / "encoder-tokenizer.json"))
    embed, count = _embedder(session, tokenizer), _counter(tokenizer)
    return CapabilityEncoder(
        embed, count, ENCODER_TOKENS, manifest.representation, arrays.norms, arrays.connector
    )


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text).ids)


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
