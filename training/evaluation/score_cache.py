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
from engine.registry.matching import deviations, task_match


def score_once(
    bundle: Path, outcomes: Outcomes, folder: Path | None, *, matched: bool = True
) -> OfflineScores:
    """Score `outcomes` through `bundle`, or return what an earlier call left in `folder`.

    Scores go by everything that they depend on, so an outdated file is never read. None keeps
    nothing. matched: see score_outcomes. Raises BundleError.
    """
    if folder is None:
        return score_outcomes(bundle, outcomes, matched=matched)
    path = folder / f"{outcomes.name}-{_key(bundle, outcomes, matched)}.npz"
    if path.exists():
        with np.load(path) as kept:
            return OfflineScores(kept["p"], kept["input_tokens"], kept["embeddings"])
    scores = score_outcomes(bundle, outcomes, matched=matched)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, p=scores.p, input_tokens=scores.input_tokens, embeddings=scores.embeddings)
    unfinished.rename(path)
    return scores


def _key(bundle: Path, outcomes: Outcomes, matched: bool) -> str:
    """Identify the bundle's files, the code of the match, the instructions, the test and the
    candidates' aptitude."""
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes())
    asked = [question for each in outcomes.test.questions for question in each]
    for module in (deviations, task_match):  # nothing else says how the match is made
        digest.update(Path(str(module.__file__)).read_bytes())
    for text in (str(matched), *outcomes.texts, *map(str, outcomes.test.keywords), *asked):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(outcomes.test.accuracies.tobytes())
    return digest.hexdigest()[:16]
