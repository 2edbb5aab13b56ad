"""Simple routers to compare Model-SAT with, on the same rows.

Each takes training rows and test rows and gives probabilities (B, M). all-MiniLM-L6-v2 embeds the
text (256 tokens). A router that learns a number for each candidate cannot score one that it has
not seen; `bilinear` and `aptitude_knn` can, from its accuracies on the aptitude test.

Shapes: N training rows, B test rows, M candidates, U unseen ones, E embedding width, T tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from engine.bundle.types import Float32Array
from training.evaluation.metrics import pooled_auc
from training.model.loss import bce
from training.model.model import TextEncoder
from training.weights.base import CACHE, ENCODER, load_base

MAX_TOKENS = 256  # that MiniLM reads
NEIGHBORS = (20, 40, 80)
TREES, MIN_LEAF = 200, 10
PRIOR_OUTCOMES = 10.0  # weight of a candidate's overall mean in a subject's, in outcomes


@dataclass(frozen=True)
class Rows:
    """What a baseline reads. x: (N, E) embeddings. scores: (M, N). subjects: N names."""

    x: Float32Array
    scores: Float32Array
    subjects: Sequence[str]


def embed(texts: Sequence[str], cache: Path) -> Float32Array:
    """Embed texts with MiniLM, (N, E), or read the embeddings from `cache`."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = cache / f"{digest}.npy"
    if path.is_file():
        return np.asarray(np.load(path))
    encoder = TextEncoder(load_base(ENCODER, CACHE))
    encoder.tokenizer.enable_truncation(MAX_TOKENS)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts: list[Float32Array] = []
    for start in tqdm(range(0, len(order), 64), desc="embed", unit="batch"):
        parts.append(encoder.embed([texts[i] for i in order[start : start + 64]]))
    x = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    x[order] = np.concatenate(parts)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(path, x)
    return x


def candidate_mean(train: Rows, rows: int) -> Float32Array:
    """(rows, M): each candidate's mean outcome, so that it selects the best single candidate."""
    return np.tile(np.nanmean(train.scores, axis=1), (rows, 1))


def subject_mean(train: Rows, test: Rows) -> Float32Array:
    """(B, M): each candidate's mean on the instruction's subject, shrunk to its overall mean.

    It knows the subject, which a router does not.
    """
    prior: Float32Array = np.nanmean(train.scores, axis=1)
    table: dict[str, Any] = {}
    names = np.array(train.subjects)
    for name in set(train.subjects):
        part = train.scores[:, names == name]
        known = (~np.isnan(part)).sum(axis=1)
        table[name] = (np.nansum(part, axis=1) + PRIOR_OUTCOMES * prior) / (known + PRIOR_OUTCOMES)
    return np.stack([table.get(s, prior) for s in test.subjects])


def knn(train: Rows, test: Rows, neighbors: int) -> Float32Array:
    """(B, M): mean outcome on the nearest training rows, weighted by cosine, shrunk to the mean."""
    near, weight = _nearest(train.x, test.x, neighbors)
    scores = train.scores[:, near]
    known = ~np.isnan(scores)
    total = (np.where(known, scores, 0) * weight).sum(axis=2)
    prior = np.nanmean(train.scores, axis=1)[:, None]
    return np.asarray(((total + 2 * prior) / ((known * weight).sum(axis=2) + 2)).T)


def _nearest(
    x: Float32Array, y: Float32Array, neighbors: int
) -> tuple[NDArray[np.int64], Float32Array]:
    similarity = y @ x.T
    near = np.argpartition(-similarity, neighbors, axis=1)[:, :neighbors]
    return near, np.take_along_axis(similarity, near, axis=1).clip(0.01)


def logistic(train: Rows, test: Rows) -> Float32Array:
    """(B, M): a logistic regression for each candidate."""
    p = []
    for scores in train.scores:
        known = ~np.isnan(scores)
        x, y = train.x[known], scores[known]
        fit = LogisticRegression(C=1.0, max_iter=300).fit(
            np.concatenate([x, x]), np.repeat([1, 0], len(y)), np.concatenate([y, 1 - y])
        )
        p.append(fit.predict_proba(test.x)[:, 1])
    return np.stack(p, axis=1)


def random_forest(train: Rows, test: Rows, seed: int = 0) -> Float32Array:
    """(B, M): trees of all candidates' outcomes; a missing one counts as the candidate's mean."""
    means = np.nanmean(train.scores, axis=1)
    known = np.where(np.isnan(train.scores), means[:, None], train.scores).T
    forest = RandomForestRegressor(
        TREES, min_samples_leaf=MIN_LEAF, max_features="sqrt", random_state=seed
    )
    found = forest.fit(train.x, known).predict(test.x)
    return np.asarray(found.reshape(len(test.x), len(means)), dtype=np.float32)


def mlp(train: Rows, validation: Rows, test: Rows, seed: int = 0) -> Float32Array:
    """(B, M): a hidden layer shared by all candidates, an output for each; early stopping."""
    torch.manual_seed(seed)
    width, candidates = train.x.shape[1], len(train.scores)
    network = nn.Sequential(
        nn.Linear(width, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, candidates)
    )
    return _fit(network, lambda x, _: network(x), train, validation, test)


def bilinear(
    train: Rows,
    validation: Rows,
    test: Rows,
    accuracies: Float32Array,
    tested: Float32Array,
    seed: int = 0,
) -> Float32Array:
    """(B, U): x W a + u x + v a + b with accuracies a.

    accuracies: (M, T) of the training candidates. tested: (U, T) of those to score, seen or not.
    """
    torch.manual_seed(seed)
    center, spread = np.nanmean(accuracies, axis=0), max(float(np.nanstd(accuracies)), 1e-3)

    def standard(a: Float32Array) -> Tensor:
        filled = np.nan_to_num((a - center) / spread)
        return torch.from_numpy(np.concatenate([filled, np.ones((len(a), 1))], 1)).float()

    left = nn.Linear(train.x.shape[1], accuracies.shape[1] + 1)
    seen, scored = standard(accuracies), standard(tested)

    return _fit(
        left, lambda x, last: left(x) @ (scored if last else seen).T, train, validation, test
    )


def _fit(
    network: nn.Module,
    score: Callable[[Tensor, bool], Tensor],
    train: Rows,
    validation: Rows,
    test: Rows,
    epochs: int = 60,
) -> Float32Array:
    """Minimize binary cross-entropy with Adam; the epoch with the lowest validation loss wins.

    score: embeddings and whether they are the test rows -> logits.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.scores.T.copy())
    held, truth = torch.from_numpy(validation.x), torch.from_numpy(validation.scores.T.copy())
    best, result, wait = np.inf, np.zeros(0, dtype=np.float32), 0
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            bce(score(x[rows], False), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            network.eval()
            value = float(bce(score(held, False), truth))
            wait += 1
            if value < best - 1e-4:
                best, wait = value, 0
                result = torch.sigmoid(score(torch.from_numpy(test.x), True)).numpy()
        if wait == 5:
            break
    return result


def aptitude_knn(
    train: Rows, test: Rows, accuracies: Float32Array, tested: Float32Array, neighbors: int = 40
) -> Float32Array:
    """(B, U): kNN over instructions; outcomes of the seen candidates, weighted by similar aptitude.

    Corrected by the difference in mean aptitude.
    """
    seen = knn(train, test, neighbors)
    filled, other = np.nan_to_num(accuracies), np.nan_to_num(tested)
    distance = ((other[:, None] - filled[None]) ** 2).mean(axis=2)
    weight = np.exp(-distance / 0.01) + 1e-9
    weight /= weight.sum(axis=1, keepdims=True)
    offset = np.nanmean(tested, axis=1) - weight @ np.nanmean(accuracies, axis=1)
    return np.asarray((seen @ weight.T + offset).clip(0.001, 0.999))


def best_knn(train: Rows, validation: Rows, test: Rows) -> Float32Array:
    """kNN with the number of neighbors that is best on validation rows."""
    auc = {k: pooled_auc(knn(train, validation, k), validation.scores.T) for k in NEIGHBORS}
    return knn(train, test, max(auc, key=lambda k: auc[k]))


def seen_baselines(
    train: Rows, validation: Rows, test: Rows, accuracies: Float32Array
) -> dict[str, Float32Array]:
    """Run every baseline that scores candidates it was trained on."""
    random = np.random.default_rng(0)
    return {
        "random": random.random((len(test.x), len(train.scores))).astype(np.float32),
        "candidate mean": candidate_mean(train, len(test.x)),
        "subject mean": subject_mean(train, test),
        "kNN": best_knn(train, validation, test),
        "logistic regression": logistic(train, test),
        "random forest": random_forest(train, test),
        "MLP": mlp(train, validation, test),
        "bilinear": bilinear(train, validation, test, accuracies, accuracies),
    }


def unseen_baselines(
    train: Rows, validation: Rows, test: Rows, accuracies: Float32Array, tested: Float32Array
) -> dict[str, Float32Array]:
    """Run every baseline that scores candidates by their accuracies alone; tested: (U, T)."""
    random = np.random.default_rng(0)
    level = np.nanmean(tested, axis=1)
    return {
        "random": random.random((len(test.x), len(tested))).astype(np.float32),
        "mean aptitude": np.tile(level, (len(test.x), 1)),
        "bilinear": bilinear(train, validation, test, accuracies, tested),
        "aptitude-weighted kNN": aptitude_knn(train, test, accuracies, tested),
    }
