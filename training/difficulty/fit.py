"""Fit the classifiers of everyday prompts and of texts that are no instructions.

    python -m training.difficulty.fit --bundle artifacts/bundle --data DATA/* --out pretrained

One classifier separates everyday prompts from instructions of data folders, short ones above all,
from their questions without options, and from prompts that look like everyday ones, in twenty
languages. The other
separates texts that are no instructions from all of these. Both are logistic regressions of the
place of an instruction (engine/bundle/task_places.py), one weight an axis. Run it after
training.task_places, then `make export`. It takes about two minutes on one core.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.api.errors import BundleError, ModelsatError
from engine.bundle.arrays import load_arrays
from engine.bundle.task_places import load_task_places, save_task_places
from engine.bundle.types import Float32Array, Float64Array
from engine.datasets.outcomes import read_outcomes, split
from engine.inference.offline import open_embedder
from training.difficulty.prompts import everyday_prompts, other_prompts, unusual_texts
from training.fit_arguments import fit_parser

SEED = 2
# Of the squared weights. The smoother classifier of everyday prompts changes less with the rounding
# of int8, at no loss; the other one would miss texts.
EVERYDAY_PENALTY, UNUSUAL_PENALTY = 0.3, 0.1
# Weights of the kinds, each in all.
FOLDER, EVERYDAY, OTHER, STEMS, UNUSUAL = 800.0, 2000.0, 1200.0, 300.0, 200.0
SHORT = 2000.0  # questions of folders that are as short as everyday prompts, and harder
MAX_SHORT, SHORT_TEXTS = 160, 600  # characters of one, questions of a folder
# Of known instructions, this share is at most FAR unusual: the out-of-distribution score that is
# asked of what is far from all of them.
KNOWN_SHARE, FAR = 0.995, 0.95
STEP_TOLERANCE, MAX_STEPS = 1e-4, 50
_OPTIONS = re.compile(r"\n\s*(Options?:|Choices?:|\(?A[\).:]\s)")


def training_texts(folder: Path, count: int) -> list[str]:
    """Draw at most `count` instructions of a folder's training rows, always the same ones."""
    texts = read_outcomes(folder).texts
    rows = np.random.default_rng(SEED).permutation(split(texts)[0])[:count]
    return [texts[i] for i in rows]


def short_texts(folder: Path) -> list[str]:
    """Draw at most SHORT_TEXTS short instructions of a folder's training rows, always the same
    ones."""
    texts = read_outcomes(folder).texts
    rows = np.random.default_rng(SEED).permutation(split(texts)[0])
    return [texts[i] for i in rows if len(texts[i]) < MAX_SHORT][:SHORT_TEXTS]


def without_options(texts: Iterable[str]) -> list[str]:
    """Return the questions among `texts` that have options, without these: they look like everyday
    prompts, and are as hard as before."""
    found = ((text, _OPTIONS.search(text)) for text in texts)
    stems = [text[: options.start()].strip() for text, options in found if options is not None]
    return [stem for stem in stems if 15 < len(stem) < 1200]


def fit_classifier(
    x: Float64Array, y: Float64Array, weights: Float64Array, penalty: float
) -> Float32Array:
    """Fit a logistic regression by Newton's method.

    Args:
        x: (N, P) unit vectors.
        y: (N,) 0 or 1.
        weights: (N,) of the rows.
        penalty: of the squared weights, not of the bias.

    Returns:
        (P + 1,) weights, then the bias.
    """
    design = np.column_stack([x, np.ones(len(x))])
    ridge = np.diag([penalty] * x.shape[1] + [1e-6])
    found = np.zeros(design.shape[1])
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(-(design @ found)))
        gradient = design.T @ (weights * (p - y)) + ridge @ found
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        found -= step
        if np.abs(step).max() < STEP_TOLERANCE:
            break
    return found.astype(np.float32)


def classify(
    one: Float32Array, others: Iterable[tuple[Float32Array, float]], penalty: float
) -> Float32Array:
    """Fit a classifier of places `one` (N, P), which weigh EVERYDAY in all, against kinds of others
    with their weights: (P + 1,). penalty: see fit_classifier."""
    kinds = [(one, EVERYDAY), *((places, weight) for places, weight in others if len(places))]
    x = np.concatenate([places for places, _ in kinds]).astype(np.float64)
    weights = np.concatenate([np.full(len(places), w / len(places)) for places, w in kinds])
    y = (np.arange(len(x)) < len(one)).astype(np.float64)
    return fit_classifier(x, y, weights, penalty)


def calibrate(weights: Float32Array, known: Float32Array) -> Float32Array:
    """Return a classifier's weights (P + 1,) with the bias that gives FAR at KNOWN_SHARE of places
    (N, P) of instructions."""
    margins = known @ weights[:-1]
    bias = np.log(FAR / (1 - FAR)) - np.quantile(margins, KNOWN_SHARE)
    return np.append(weights[:-1], bias).astype(np.float32)


def main() -> None:
    """Parse the command line, fit both classifiers and write them."""
    description = (__doc__ or "").splitlines()[0]
    parser = fit_parser(description, "texts", 400, "task_places.npz")
    arguments = parser.parse_args()
    known = load_task_places(arguments.out)
    if known is None:
        raise BundleError(f"{arguments.out} has no task_places.npz to add it to.")
    space = load_arrays(arguments.bundle).instruction_space
    if known.space not in ("", space.id):
        raise BundleError(
            f"{arguments.out} has places in space {known.space}, {arguments.bundle} embeds in"
            f" {space.id}; run training.task_places first."
        )
    embedder = open_embedder(arguments.bundle)

    def place(texts: list[str]) -> Float32Array:
        return space.unit_vectors(embedder.embed(texts), space.mean)

    folders = [training_texts(folder, arguments.texts) for folder in arguments.data]
    stems = without_options(text for texts in folders for text in texts)[: arguments.texts]
    prompts = [(place(texts), FOLDER) for texts in folders]
    short = [text for folder in arguments.data for text in short_texts(folder)]
    prompts += [(place(other_prompts()), OTHER), (place(stems), STEMS), (place(short), SHORT)]
    everyday, unusual = place(everyday_prompts()), place(unusual_texts())
    uncalibrated = classify(unusual, [*prompts, (everyday, EVERYDAY)], UNUSUAL_PENALTY)
    places = replace(
        known,
        everyday=classify(everyday, [*prompts, (unusual, UNUSUAL)], EVERYDAY_PENALTY),
        unusual=calibrate(uncalibrated, np.concatenate([everyday, *(each for each, _ in prompts)])),
        space=space.id,
    )
    save_task_places(arguments.out, places)
    print(f"{len(everyday)} everyday prompts, {sum(len(p) for p, _ in prompts)} other ones")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
