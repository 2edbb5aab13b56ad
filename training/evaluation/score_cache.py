"""Keep the scores of data folders between evaluations.

The forward passes take most of an evaluation's time, and depend on neither --memory nor --feedback.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from engine.bundle.manifest import MANIFEST
from engine.datasets.outcomes import Outcomes
from engine.inference.offline import OfflineScores, score_outcomes


def score_once(bundle: Path, outcomes: Outcomes, folder: Path | None) -> OfflineScores:
    """Score `outcomes` through `bundle`, or return what an earlier call left in `folder`.

    Scores go by everything that they depend on, so an outdated file is never read. None keeps
    nothing. Raises BundleError.
    """
    if folder is None:
        return score_outcomes(bundle, outcomes)
    path = folder / f"{outcomes.name}-{_key(bundle, outcomes)}.npz"
    if path.exists():
        with np.load(path) as kept:
            return OfflineScores(kept["p"], kept["input_tokens"], kept["embeddings"])
    scores = score_outcomes(bundle, outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, p=scores.p, input_tokens=scores.input_tokens, embeddings=scores.embeddings)
    unfinished.rename(path)
    return scores


def _key(bundle: Path, outcomes: Outcomes) -> str:
    """Identify the bundle's files, the instructions and the candidates' aptitude."""
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes())
    for text in (*outcomes.texts, *map(str, outcomes.test.keywords)):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(outcomes.test.accuracies.tobytes())
    return digest.hexdigest()[:16]
