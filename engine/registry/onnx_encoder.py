"""Run a bundle's capability encoder by ONNX Runtime, whenever a candidate is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.bundle.arrays import ScoringArrays
from engine.registry.catalog import read_catalog
from engine.registry.encoder import CapabilityEncoder

BATCH_TEXTS = 16  # bounds the memory that an aptitude test with many new tasks takes


def load_encoder(
    bundle: Path, arrays: ScoringArrays, *, cut_long_tasks: bool = False
) -> CapabilityEncoder:
    """Open the capability encoder of a bundle folder.

    arrays: of the same bundle. cut_long_tasks: see CapabilityEncoder.
    """
    tokenizer, catalog = _load_tokenizer(bundle), bundle / "zoo.json"
    return CapabilityEncoder(
        load_embedder(bundle, arrays.encoder_tokens),
        lambda text: len(tokenizer.encode(text).ids),
        arrays.encoder_tokens,
        arrays.norms,
        arrays.connector,
        cut_long_tasks=cut_long_tasks,
        space=arrays.instruction_space,
        places=arrays.places,
        catalog=read_catalog(catalog) if catalog.is_file() else (),
    )


def load_embedder(
    bundle: Path, max_tokens: int | None = None
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Open encoder.onnx; return a function from N texts to (N, E) mean-pooled, normalized
    embeddings.

    max_tokens: of a text; the rest of a longer one is not read. None: texts must not be longer.
    """
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False  # it runs rarely, so its memory should be freed
    session = ort.InferenceSession(
        bundle / "encoder.onnx", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = _load_tokenizer(bundle)
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)

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
        batches = [texts[i : i + BATCH_TEXTS] for i in range(0, len(texts), BATCH_TEXTS)]
        return np.concatenate([run(batch) for batch in batches])

    return embed


def _load_tokenizer(bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bundle / "encoder-tokenizer.json"))
