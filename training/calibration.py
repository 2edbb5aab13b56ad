"""Fit the calibration of trained weights again, with the match that is served.

    python -m training.calibration --bundle artifacts/bundle --data DIR... --out pretrained

Training fits scale and offset of the log-odds to the weights alone. A server adds the match of
instructions with tasks to them (engine/registry/matching/task_match.py), so that the best scale is
a little lower. Fitted to validation rows, every folder weighing alike. Run it last, then merge and
export.

Shapes: B instructions, M candidates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from engine.api.errors import BundleError, ModelsatError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Calibration, read_manifest
from engine.bundle.training_set import load_training_set
from engine.bundle.types import Float64Array
from engine.datasets.outcomes import Outcomes, read_outcomes, split
from engine.inference.offline import (
    InstructionEmbedder,
    candidates_of,
    open_embedder,
    pack_places,
    score_candidates,
)
from engine.registry.onnx_encoder import load_encoder
from training.fit_arguments import fit_parser
from training.weights.adapter import MODEL, weights_id

SEED, STEPS = 3, 30


def fit_calibration(
    folders: Sequence[tuple[Float64Array, Float64Array, Float64Array]],
) -> Calibration:
    """Fit p = sigmoid(scale x + offset + added) by Newton's method.

    folders: log-odds x, what is added, and outcomes in [0, 1] of each folder, (B, M), NaN = not
    measured. Folders weigh alike, however many outcomes they have.
    """
    known = [~np.isnan(y) for _, _, y in folders]
    x, added, y = (
        np.concatenate([f[part][k] for f, k in zip(folders, known, strict=True)])
        for part in range(3)
    )
    weights = np.concatenate([np.full(k.sum(), 1 / max(1, k.sum())) for k in known])
    design, found = np.column_stack([x, np.ones(len(x))]), np.array([1.0, 0.0])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(design @ found + added)))
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(curvature, design.T @ (weights * (p - y)))
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    return Calibration(float(found[0]), float(found[1]))


def margins_of(
    bundle: Path, embedder: InstructionEmbedder, outcomes: Outcomes
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the weights' log-odds, the match and the outcomes of all instructions, (B, M)."""
    arrays = load_arrays(bundle)
    places = pack_places(outcomes.test.questions, embedder, arrays)
    candidates = candidates_of(outcomes, places)
    scores = score_candidates(
        bundle,
        outcomes.texts,
        candidates,
        matched=False,
        label=outcomes.name,
        embedder=embedder,
    )
    match = load_encoder(bundle, arrays, cut_long_tasks=True).match(candidates)
    added = np.zeros(scores.p.shape) if match is None else match.log_odds(scores.embeddings)
    return (
        scores.logits.astype(np.float64),
        added.astype(np.float64),
        outcomes.scores.T.astype(np.float64),
    )


def main() -> None:
    """Parse the command line, fit and write the calibration."""
    description = (__doc__ or "").splitlines()[0]
    parser = fit_parser(description, "rows", 1000, "model.json")
    arguments = parser.parse_args()
    known = load_training_set(arguments.bundle)
    if known is None or known.weights != weights_id(arguments.out):
        raise BundleError(f"{arguments.bundle} was not made from the weights in {arguments.out}.")
    old, embedder = (
        read_manifest(arguments.bundle, "bundle").calibration,
        open_embedder(arguments.bundle),
    )
    folders = []
    for folder in arguments.data:
        outcomes = read_outcomes(folder)
        _, rows, _ = split(outcomes.texts)
        rows = np.random.default_rng(SEED).permutation(rows)[: arguments.rows]
        folders.append(margins_of(arguments.bundle, embedder, outcomes.take(rows)))
    fitted = fit_calibration(folders)
    calibration = Calibration(fitted.scale * old.scale, fitted.scale * old.offset + fitted.offset)
    model = json.loads((arguments.out / MODEL).read_text(encoding="utf-8"))
    model["calibration"] = asdict(calibration)
    (arguments.out / MODEL).write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    print(f"{old} -> {calibration}")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
