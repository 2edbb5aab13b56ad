"""Measure whether out-of-distribution scores tell where probabilities are wrong.

    python -m training.evaluation.unfamiliarity --data DIR... --known DIR... --out FILE

Calibration error by tenths of two scores: the mean token surprisal that is served as ood_score, and
the distance of the instruction's embedding from those of folders whose kinds training saw. Measured
on other instructions of these, and on folders of kinds that training did not see. The error rises
with a useful score.

Shapes: B instructions, M candidates, P axes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.api.errors import BundleError
from engine.bundle.arrays import load_arrays
from engine.bundle.prompt import render
from engine.bundle.training_set import load_training_set
from engine.bundle.types import Float32Array, Float64Array, FloatArray
from engine.datasets.outcomes import Outcomes, read_outcomes
from training.evaluation import metrics
from training.evaluation.evaluate import unseen_folders
from training.evaluation.plots import plot_lines
from training.evaluation.score_cache import score_once

TENTHS, NEIGHBORS = 10, 8


@dataclass(frozen=True, eq=False)
class Unfamiliar:
    """One folder. p, y: (B, M), y NaN if unknown. scores: name -> (B,)."""

    p: FloatArray
    y: FloatArray
    scores: dict[str, Float64Array]


def errors_by_tenth(folders: Sequence[Unfamiliar], name: str) -> list[float]:
    """Return the expected calibration error of each tenth of the instructions, by ascending score;
    equal scores are in random order."""
    every = np.concatenate([folder.scores[name] for folder in folders])
    ties = np.random.default_rng(0).random(len(every))
    tenth = np.empty(len(every), dtype=np.int64)
    tenth[np.lexsort((ties, every))] = np.arange(len(every)) * TENTHS // len(every)
    own = np.split(tenth, np.cumsum([len(folder.p) for folder in folders])[:-1])
    return [
        metrics.ece(
            np.concatenate([f.p[t == i].ravel() for f, t in zip(folders, own, strict=True)]),
            np.concatenate([f.y[t == i].ravel() for f, t in zip(folders, own, strict=True)]),
        )
        for i in range(TENTHS)
    ]


def distances(vectors: Float32Array, known: Float32Array) -> Float64Array:
    """Return 1 - the mean cosine of the nearest NEIGHBORS of `known` (K, P), for vectors (B, P)."""
    cosines = vectors @ known.T
    nearest = -np.partition(-cosines, NEIGHBORS - 1, axis=1)[:, :NEIGHBORS]
    return np.asarray(1 - nearest.mean(axis=1), dtype=np.float64)


def _drawn(outcomes: Outcomes, count: int) -> Outcomes:
    rows = np.random.default_rng(0).permutation(len(outcomes.texts))[:count]
    return outcomes.take(np.sort(rows))


def main() -> None:
    """Parse the command line, print a table, and write the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="unseen data folders")
    parser.add_argument(
        "--known", type=Path, nargs="+", required=True, help="folders whose kinds training saw"
    )
    parser.add_argument("--limit", type=int, default=500, help="instructions of a folder (500)")
    parser.add_argument("--scores", type=Path, help="folder that keeps scores; see evaluate")
    parser.add_argument("--out", type=Path, required=True, help="plot")
    arguments = parser.parse_args()
    training_set = load_training_set(arguments.bundle)
    if training_set is None:
        raise BundleError(f"{arguments.bundle} does not know what it was trained on")
    space = load_arrays(arguments.bundle).instruction_space
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    paths = [*arguments.known, *arguments.data]
    unseen = unseen_folders(arguments.bundle, [read_outcomes(folder) for folder in paths])
    drawn = {f: _drawn(o, arguments.limit) for f, o in zip(paths, unseen, strict=True)}
    scored = {f: score_once(arguments.bundle, o, arguments.scores) for f, o in drawn.items()}
    # Of folders that training knows, one half is what the other half is compared with.
    reference = np.concatenate([scored[folder].embeddings[::2] for folder in arguments.known])
    known = space.unit_vectors(reference, space.mean)
    folders = []
    for folder, outcomes in drawn.items():
        rows = slice(1, None, 2) if folder in arguments.known else slice(None)
        tokens = [render(text, tokenizer).tokens for text in outcomes.texts[rows]]
        vectors = space.unit_vectors(scored[folder].embeddings[rows], space.mean)
        scores = {
            "surprisal (served)": np.array([training_set.ood_score(t) for t in tokens]),
            "distance": distances(vectors, known),
        }
        folders.append(Unfamiliar(scored[folder].p[rows], outcomes.scores.T[rows], scores))
    lines = {name: errors_by_tenth(folders, name) for name in scores}
    print("| tenth | " + " | ".join(lines) + " |")
    for tenth, errors in enumerate(zip(*lines.values(), strict=True)):
        print(f"| {tenth + 1} | " + " | ".join(f"{error:.3f}" for error in errors) + " |")
    labels = [str(tenth + 1) for tenth in range(TENTHS)]
    plot_lines(lines, labels, "calibration error by tenth of the score", arguments.out)


if __name__ == "__main__":
    main()
