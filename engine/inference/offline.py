"""Scoring a whole data folder through a bundle, the thing that is served, without a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from tokenizers import Tokenizer

from engine.api.candidate import Candidate, TaskResult
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.datasets.outcomes import Outcomes
from engine.inference.backend import Readout
from engine.inference.devices import open_backend
from engine.registry.onnx_encoder import load_encoder

BATCH = 8


@dataclass(frozen=True)
class Scored:
    """p: (N, M) probabilities. input_tokens: (N,), of each instruction."""

    p: NDArray[np.float32]
    input_tokens: NDArray[np.int64]


def candidates_of(outcomes: Outcomes) -> list[Candidate]:
    """The data's candidates with the tasks they sat."""
    return [
        Candidate(
            f"c{i}",
            tuple(
                TaskResult(keywords, float(accuracy))
                for keywords, accuracy in zip(outcomes.test.keywords, figures, strict=True)
                if not np.isnan(accuracy)
            ),
        )
        for i, figures in enumerate(outcomes.test.figures)
    ]


def score_outcomes(bundle: Path, outcomes: Outcomes) -> Scored:
    """Probabilities of every instruction and candidate of `outcomes`; shows its progress."""
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    encoder = load_encoder(bundle, arrays)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompts = [render(text, tokenizer) for text in outcomes.texts]
    embeddings = np.stack([encoder.encode(c) for c in candidates_of(outcomes)])
    everyone = np.arange(len(embeddings))
    readout = Readout(arrays.readout, manifest.norm_eps, manifest.calibration)
    backend = open_backend(bundle, manifest)
    p = np.empty((len(prompts), len(outcomes.candidates)), dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    for start in track(range(0, len(order), BATCH), description=f"score {outcomes.name}"):
        rows = order[start : start + BATCH]
        tokens = [prompts[i].tokens for i in rows]
        p[rows] = backend.probabilities(tokens, embeddings, everyone, readout).p
    return Scored(p, np.array([prompt.input_tokens for prompt in prompts]))
