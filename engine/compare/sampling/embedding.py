"""Instructions as vectors: the embedding by which a server finds similar instructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.types import Float32Array
from engine.compare.sampling.vectors import unit
from engine.inference.backend import ScoringHead
from engine.inference.devices import open_backend

BATCH_SIZE = 8


def embed(bundle: Path, texts: Sequence[str]) -> Float32Array:
    """Return the centered embeddings (N, D) of instructions, of length 1, with a progress bar.

    Raises:
        BundleError: the bundle cannot be used.
    """
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    backend = open_backend(bundle, manifest)
    # The backend scores at least one candidate; this one is the null candidate itself.
    candidate, row = np.zeros((1, manifest.width), dtype=np.float32), np.arange(1)
    prompts = [render(text, tokenizer).tokens for text in texts]
    embeddings = np.empty((len(texts), manifest.width), dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in track(range(0, len(order), BATCH_SIZE), description="embed instructions"):
        rows = order[start : start + BATCH_SIZE]
        scores = backend.probabilities([prompts[i] for i in rows], candidate, row, head)
        embeddings[rows] = scores.embeddings
    return unit(embeddings - arrays.instruction_space.mean)
