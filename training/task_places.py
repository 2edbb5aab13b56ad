"""Compute where tasks and training instructions lie among instructions, and write it to weights.

    python -m training.task_places --test DIR --data DIR... --out pretrained

The places of the tasks of --test, a data folder with aptitude.json, are those of its questions; no
text of a question is kept. The landmarks are instructions of --data that the weights were trained
on. Where a task lies is estimated from its keywords by a ridge regression, from the text encoder's
embeddings of instructions of --data to their places. Run it after training.instruction_space, then
`make export`. It takes about nine minutes on two cores, most of them in the text encoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from engine.api.errors import BundleError, ModelsatError
from engine.bundle.arrays import keywords_id, load_arrays
from engine.bundle.task_places import TaskPlaces, normalized, save_task_places
from engine.bundle.training_set import load_training_set
from engine.bundle.types import Float32Array
from engine.datasets.outcomes import fingerprint, read_outcomes
from engine.inference.offline import open_embedder, places_of
from engine.registry.onnx_encoder import load_embedder
from training.instruction_space import sample_texts

SEED = 1
PENALTY = 10.0
MAX_CHARS = 1200  # of a text, for the text encoder


def sample_trained(folders: Iterable[Path], known: Iterable[int], count: int) -> list[str]:
    """Draw at most `count` instructions of each data folder among those whose fingerprints are
    known, always the same ones."""
    trained, texts = set(known), []
    for folder in folders:
        every = read_outcomes(folder).texts
        order = np.random.default_rng(SEED).permutation(len(every))
        own = [every[i] for i in order if fingerprint(every[i]) in trained]
        texts += own[:count]
    return texts


def fit_keywords(keywords: Float32Array, places: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Fit places (N, P) to text embeddings (N, E) by ridge regression: weight (E, P), bias (P,)."""
    x, y = keywords.astype(np.float64), places.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    gram = (x - x_mean).T @ (x - x_mean) + PENALTY * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, (x - x_mean).T @ (y - y_mean))
    return weight.astype(np.float32), (y_mean - x_mean @ weight).astype(np.float32)


def main() -> None:
    """Parse the command line, compute the places and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"), help="to embed by")
    parser.add_argument("--test", type=Path, required=True, help="data folder with aptitude.json")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data folders")
    parser.add_argument("--texts", type=int, default=400, help="of each folder, for keywords")
    parser.add_argument("--landmarks", type=int, default=250, help="at most, of each folder")
    parser.add_argument(
        "--out", type=Path, default=Path("pretrained"), help="folder that task_places.npz goes to"
    )
    arguments = parser.parse_args()
    known = load_training_set(arguments.bundle)
    if known is None:
        raise BundleError(f"{arguments.bundle} has no training_set.npz, which names what is known.")
    space, embedder = (
        load_arrays(arguments.bundle).instruction_space,
        open_embedder(arguments.bundle),
    )

    def place(texts: list[str]) -> Float32Array:
        return space.unit_vectors(embedder.embed(texts), space.mean)

    trained = sample_trained(arguments.data, known.fingerprints.tolist(), arguments.landmarks)
    texts = sample_texts(arguments.data, arguments.texts)
    embed = load_embedder(arguments.bundle, load_arrays(arguments.bundle).encoder_tokens)
    weight, bias = fit_keywords(normalized(embed([t[:MAX_CHARS] for t in texts])), place(texts))
    test = read_outcomes(arguments.test).test
    asked = {k: q for k, q in zip(test.keywords, test.questions, strict=True) if q}
    of_tasks = places_of(list(asked.values()), embedder, space)
    named = dict(zip(asked, of_tasks, strict=True))
    had = [task for folder in arguments.data for task in read_outcomes(folder).test.keywords]
    keywords = np.unique(np.array([keywords_id(task) for task in had], dtype=np.uint32))
    found = TaskPlaces(named, weight, bias, place(trained), space=space.id, trained=keywords)
    save_task_places(arguments.out, found)
    print(f"{len(named)} tasks, {len(trained)} training instructions, {len(texts)} texts")


if __name__ == "__main__":
    try:
        main()
    except ModelsatError as problem:
        sys.exit(f"error: {problem}")
