"""Score all outcomes of a data folder with a bundle, without a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from engine.api.candidate import Candidate, TaskResult
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.outcomes import Outcomes
from engine.inference.backend import ScoringHead, log_odds
from engine.inference.devices import open_backend
from engine.registry.onnx_encoder import load_encoder

BATCH_SIZE = 8


@dataclass(frozen=True)
class OfflineScores:
    """Probabilities of N instructions and M candidates.

    p: (N, M). input_tokens: (N,). embeddings: (N, D) of the instructions, see BatchScores.
    """

    p: Float32Array
    input_tokens: Int64Array
    embeddings: Float32Array

    @property
    def logits(self) -> Float32Array:
        """(N, M) log-odds."""
        return log_odds(self.p)


def candidates_of(outcomes: Outcomes) -> list[Candidate]:
    """Return the candidates of `outcomes`, each with the results of the tasks it took."""
    return [
        Candidate(
            f"c{i}",
            tuple(
                TaskResult(keywords, float(accuracy))
                for keywords, accuracy in zip(outcomes.test.keywords, row, strict=True)
                if not np.isnan(accuracy)
            ),
        )
        for i, row in enumerate(outcomes.test.accuracies)
    ]


def score_outcomes(bundle: Path, outcomes: Outcomes) -> OfflineScores:
    """Score every instruction for every candidate of `outcomes`, with a progress bar.

    bundle: folder of the bundle. Raises BundleError.
    """
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    encoder = load_encoder(bundle, arrays, cut_long_tasks=True)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    prompts = [render(text, tokenizer) for text in outcomes.texts]
    embeddings = np.stack([encoder.encode(c) for c in candidates_of(outcomes)])
    all_rows = np.arange(len(embeddings))
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    backend = open_backend(bundle, manifest)
    p = np.empty((len(prompts), len(outcomes.candidates)), dtype=np.float32)
    instructions = np.empty((len(prompts), manifest.width), dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    for start in track(range(0, len(order), BATCH_SIZE), description=f"score {outcomes.name}"):
        rows = order[start : start + BATCH_SIZE]
        tokens = [prompts[i].tokens for i in rows]
        scores = backend.probabilities(tokens, embeddings, all_rows, head)
        p[rows], instructions[rows] = scores.p, scores.embeddings
    input_tokens = np.array([prompt.input_tokens for prompt in prompts])
    return OfflineScores(p, input_tokens, instructions)
