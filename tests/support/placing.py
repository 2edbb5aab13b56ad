"""Where a candidate's results place it: the mean of its probabilities on a few instructions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.api.candidate import Candidate
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.inference.backend import Backend, ScoringHead
from engine.inference.devices import open_backend
from engine.registry.encoder import CapabilityEncoder
from engine.registry.onnx_encoder import load_encoder
from tools.processes import BUNDLE

INSTRUCTIONS = Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8").splitlines()
COUNT = 24


@lru_cache(maxsize=1)
def _parts() -> tuple[CapabilityEncoder, Backend, list[Any], ScoringHead]:
    manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    tokens = [render(text, tokenizer).tokens for text in INSTRUCTIONS[:COUNT]]
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    return load_encoder(BUNDLE, arrays), open_backend(BUNDLE, manifest), tokens, head


def mean_p(candidates: Sequence[Candidate]) -> NDArray[np.float32]:
    """Score M candidates on COUNT instructions with the shipped bundle: (M,) mean p."""
    encoder, backend, tokens, head = _parts()
    embeddings = np.stack([encoder.encode(candidate) for candidate in candidates])
    scores = backend.probabilities(tokens, embeddings, np.arange(len(candidates)), head)
    return np.asarray(scores.p.mean(axis=0))
