"""Pack data folders for training on a machine without tokenizer and encoder.

    python -m research.many_folders.data.pack --data DIR... \
        --bundle artifacts/bundle --embeddings DIR --out FILE

The pack holds token IDs, outcomes, splits, text embeddings, the aptitude test of each folder's
candidates, and other task sets of its instructions (research/many_folders/data/task_sets.py). It
holds no text.

Shapes: N instructions, M candidates, T tasks, F figure rows (test items), E encoder width.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.bundle.arrays import TaskNorms, load_arrays
from engine.datasets.folder import read_folder
from engine.datasets.outcomes import Outcomes, normalize_text, read_outcomes, split
from engine.registry.encoder import keyword_vectors
from engine.registry.onnx_encoder import load_embedder
from research.many_folders.data.near_duplicates import Shingles
from research.many_folders.data.task_sets import TaskSet, task_sets
from training.data.dataset import tokenize
from training.data.reformat import options, reformat

Floats = NDArray[np.float32]
MOST_TRAINING = 6000  # rows of one folder that travel
FRESH = 2000  # rows on which a folder that was held_out out whole is evaluate_rows
EXTRA = {"mmlu_pro_extra": "mmlu_pro_cot"}  # further candidates on the rows of another folder


def with_extra(outcomes: Outcomes, extra: Path, items: Sequence[str]) -> Outcomes:
    """`outcomes` and the candidates of `extra`, who answered some of the same instructions.

    items: the texts of the test's items, task after task, as outcomes.test.answers holds them.
    """
    data = read_folder(extra)
    place = {str(r["text"]): i for i, r in enumerate(data.records)}

    def scores(texts: Sequence[str]) -> Floats:
        found = np.full((len(data.candidates), len(texts)), np.nan, np.float32)
        for column, text in enumerate(texts):
            if text in place:
                found[:, column] = data.scores[:, place[text]]
        return found

    assert outcomes.test.answers is not None
    shape = (len(data.candidates), *outcomes.test.answers.shape[1:])
    answers = np.full(shape, np.nan, np.float32).reshape(shape[0], -1)
    known = ~np.isnan(outcomes.test.answers[0]).reshape(-1)
    known |= ~np.isnan(outcomes.test.answers).all(axis=0).reshape(-1)
    answers[:, known] = scores(items)
    answers = answers.reshape(shape)
    test = replace(
        outcomes.test,
        accuracies=np.concatenate([outcomes.test.accuracies, np.nanmean(answers, axis=2)]),
        answers=np.concatenate([outcomes.test.answers, answers]),
    )
    return replace(
        outcomes,
        candidates=[*outcomes.candidates, *data.candidates],
        scores=np.concatenate([outcomes.scores, scores(outcomes.texts)]),
        test=test,
    )


def kept_rows(texts: Sequence[str], fresh: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Every validation and test row, MOST_TRAINING training rows, and FRESH rows for a run that
    leaves the folder out."""
    random = np.random.default_rng(0)
    training, validation, test = split(texts)
    some = random.permutation(training)[:MOST_TRAINING]
    held_out = random.permutation(np.flatnonzero(fresh))[:FRESH]
    return np.unique(np.concatenate([some, validation, test, held_out]))


def flat(parts: Sequence[NDArray[Any]]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Tokens one after another, and where each row begins."""
    ends = np.cumsum([0, *(len(p) for p in parts)])
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return joined.astype(np.uint16), ends.astype(np.int64)


def quantised(vectors: Floats) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(N, E) as int8 with a scale for each row."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / 127 + 1e-9
    return np.round(vectors / scale).astype(np.int8), scale.astype(np.float32)


def pack_task_set(
    arrays: dict[str, Any], prefix: str, task_set: TaskSet, embed: Any, norms: TaskNorms
) -> None:
    """Add the arrays of one task set under `prefix`."""
    vectors = keyword_vectors(embed(task_set.keywords), norms.center)
    arrays[f"{prefix}/vectors"] = vectors.astype(np.float16)
    arrays[f"{prefix}/means"] = norms.of(task_set.keywords).astype(np.float32)
    arrays[f"{prefix}/group"] = task_set.group.astype(np.int16)
    for name in ("item_scores", "item_task", "item_group", "figures", "counts"):
        value = getattr(task_set, name)
        if value is not None:
            arrays[f"{prefix}/{name}"] = value


def pack_folder(
    outcomes: Outcomes,
    vectors: Floats,
    clean: NDArray[np.bool_],
    fresh: NDArray[np.bool_],
    tokenizer: Tokenizer,
    embed: Any,
    norms: TaskNorms,
    measured: int,
) -> dict[str, Any]:
    """All arrays of one folder. vectors: (N, E) embeddings of its texts; measured: how many of the
    candidates count in figures (others are for training alone)."""
    rows = kept_rows(outcomes.texts, fresh)
    kept = outcomes.take(rows)
    random = np.random.default_rng(1)
    part = np.zeros(len(rows), np.int8)
    for number, members in enumerate(split(kept.texts)):
        part[members] = number
    tokens, starts = flat(tokenize(kept.texts, tokenizer))
    other = [
        tokenize([reformat(random, t)], tokenizer)[0]
        if p == 0 and options(t)[1]
        else np.zeros(0, np.int64)
        for t, p in zip(kept.texts, part, strict=True)
    ]
    other_tokens, other_starts = flat(other)
    small, scale = quantised(vectors[rows])
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "starts": starts,
        "other_tokens": other_tokens,
        "other_starts": other_starts,
        "scores": kept.scores.astype(np.float16),
        "part": part,
        "clean": clean[rows],
        "fresh": fresh[rows],
        "vectors": small,
        "scale": scale,
        "measured": np.int64(measured),
        "benchmark": np.unique(kept.benchmarks, return_inverse=True)[1].astype(np.int16),
    }
    found = task_sets(kept, outcomes.test, vectors[rows], part == 0)
    for number, task_set in enumerate(found):
        pack_task_set(arrays, f"test{number}", task_set, embed, norms)
    arrays["task_sets"] = np.int64(len(found))
    return arrays


def item_texts(folder: Path) -> list[list[str]]:
    """The texts of the aptitude items of a folder with an aptitude.json, by task."""
    data = read_folder(folder)
    place = {str(r["id"]): str(r["text"]) for r in data.records}
    assert data.aptitude is not None
    return [
        [place[q] for q in data.aptitude["items"][t] if q in place] for t in data.aptitude["tasks"]
    ]


def main() -> None:
    """Read, mark near-duplicates across folders, pack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/bundle"))
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    embed = load_embedder(arguments.bundle)
    norms = load_arrays(arguments.bundle).norms
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    folders = [f for f in arguments.data if f.name not in EXTRA]
    found = [read_outcomes(folder) for folder in folders]
    every = [[str(r["text"]) for r in read_folder(folder).records] for folder in folders]
    print("read", flush=True)
    shingles = Shingles(every)
    print("shingles", flush=True)
    arrays: dict[str, Any] = {}
    names = []
    for number, (folder, outcomes, texts) in enumerate(zip(folders, found, every, strict=True)):
        place = {text: i for i, text in enumerate(texts)}
        at = np.array([place[t] for t in outcomes.texts])
        vectors = np.load(arguments.embeddings / f"{folder.name}.npy").astype(np.float32)[at]
        measured = len(outcomes.candidates)
        for extra in (f for f in arguments.data if EXTRA.get(f.name) == folder.name):
            items = [t for task in item_texts(folder) for t in task]
            outcomes = with_extra(outcomes, extra, items)
        clean = shingles.clean(number, at)
        fresh = shingles.fresh(number, at, normalize_text)
        packed = pack_folder(outcomes, vectors, clean, fresh, tokenizer, embed, norms, measured)
        arrays |= {f"{folder.name}/{k}": v for k, v in packed.items()}
        names.append(
            {
                "name": folder.name,
                "candidates": outcomes.candidates,
                "benchmarks": sorted(
                    set(outcomes.take(kept_rows(outcomes.texts, fresh)).benchmarks)
                ),
            }
        )
        parts = packed["part"]
        print(
            folder.name,
            f"M {len(outcomes.candidates)} rows {[int((parts == i).sum()) for i in range(3)]}",
            f"clean test {int((packed['clean'] & (parts == 2)).sum())}",
            f"fresh {fresh.mean():.3f} task_sets {packed['task_sets']}",
            flush=True,
        )
    arrays["meta"] = np.array(json.dumps(names))
    np.savez(arguments.out, **arrays)


if __name__ == "__main__":
    main()
