"""Prepare a data folder for training: instructions as tokens, candidates as representations.

Shapes: B instructions of a batch, L prompt tokens, N instructions of a folder, M candidates,
T tasks, C representation width, E encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.bundle.arrays import TaskNorms
from engine.bundle.prompt import Tokenizer, render
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.outcomes import Outcomes
from training.config import TrainingConfig
from training.data.augment import sample_candidates
from training.data.capability import Capabilities, capabilities
from training.data.near_duplicates import CleanSplit, split_folders
from training.data.reformat import reformat
from training.model.model import TextEncoder

BUCKET = 64  # batches whose instructions are sorted by length together


@dataclass(frozen=True)
class StepInputs:
    """The candidates of a training step, real and synthetic ones.

    c: (M, C) representations. outcomes: (B, M), NaN if not measured. skills: (M,) mean accuracy,
    of the accuracies that c shows.
    """

    c: Float32Array
    outcomes: Float32Array
    skills: Float32Array


@dataclass(frozen=True)
class Batch:
    """Instructions that are scored together.

    tokens: (B, L), padded on the right with 0. lengths: (B,) in tokens. rows: (B,) their row
    numbers in the dataset with number `dataset`.
    """

    tokens: Int64Array
    lengths: Int64Array
    rows: Int64Array
    dataset: int = 0

    def part(self, rank: int, of: int) -> Batch:
        """Take the part of process `rank` among `of` processes: every `of`-th instruction.

        If there are fewer instructions than processes, some are taken twice, because a model
        cannot run on none.
        """
        part = slice(rank % len(self.rows), None, of)
        return Batch(self.tokens[part], self.lengths[part], self.rows[part], self.dataset)


@dataclass(frozen=True)
class Dataset:
    """A data folder, tokenized, embedded and split.

    tokens: N prompts, as `tokenizer` reads them. vectors: (T, E) task keywords. c: (M, C)
    standardized representations. train, validation, test: row numbers. near_duplicates: rows that
    were taken out of the test part (training/data/near_duplicates.py).
    """

    outcomes: Outcomes
    tokenizer: Tokenizer
    tokens: list[Int64Array]
    vectors: Float32Array
    c: Float32Array
    train: Int64Array
    validation: Int64Array
    test: Int64Array
    near_duplicates: Int64Array

    def step(
        self,
        random: np.random.Generator,
        batch: Batch,
        capability: Capabilities,
        config: TrainingConfig,
    ) -> StepInputs:
        """Choose the candidates of a step: the M real ones and config.synthetic_candidates more."""
        sample = sample_candidates(
            random,
            self.outcomes.test,
            self.outcomes.scores[:, batch.rows],
            [self.outcomes.subjects[i] for i in batch.rows],
            config.synthetic_candidates,
            config.exact_accuracy_prob,
        )
        c = capability.of_sample(sample, self.outcomes.test.keywords, self.vectors)
        return StepInputs(c, sample.outcomes.T.copy(), np.nanmean(sample.accuracies, axis=1))

    def reformatted(self, random: np.random.Generator, batch: Batch, share: float) -> Batch:
        """Show about this share of the batch's instructions in the format of another harness."""
        if not share:
            return batch
        tokens = [self.tokens[row] for row in batch.rows]
        for i in np.flatnonzero(random.random(len(tokens)) < share):
            text = reformat(random, self.outcomes.texts[batch.rows[i]])
            (tokens[i],) = tokenize([text], self.tokenizer)
        return pad(tokens, batch.rows, batch.dataset)

    def batches(self, rows: Int64Array, size: int, seed: int | None, number: int) -> list[Batch]:
        """Put `rows` into batches that refer to this dataset by its number."""
        return batches(self.tokens, rows, size, seed, number)


def build_dataset(
    outcomes: Outcomes,
    capability: Capabilities,
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    parts: CleanSplit | None = None,
) -> Dataset:
    """Tokenize and embed `outcomes`; parts: their split, if other folders have a say in it."""
    if parts is None:
        (parts,) = split_folders([outcomes])
    vectors = capability.vectors(outcomes.test.keywords, encoder)
    return Dataset(
        outcomes,
        tokenizer,
        tokenize(outcomes.texts, tokenizer),
        vectors,
        capability.of(outcomes.test, vectors),
        parts.train,
        parts.validation,
        parts.test,
        parts.near_duplicates,
    )


def build_datasets(
    outcomes: Sequence[Outcomes],
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    norms: TaskNorms | None = None,
) -> tuple[Capabilities, list[Dataset]]:
    """Build the dataset of every folder; the first one's aptitude test sets scale and norms.

    norms: replaces the norms of the first folder, if training continues from other weights.
    """
    capability = capabilities(outcomes[0].test, encoder, norms)
    parts = split_folders(outcomes)
    return capability, [
        build_dataset(o, capability, encoder, tokenizer, p)
        for o, p in zip(outcomes, parts, strict=True)
    ]


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[Int64Array]:
    """Render the prompt tokens of each text, as serving does."""
    return [render(text, tokenizer).tokens for text in texts]


def batches(
    tokens: Sequence[Int64Array], rows: Int64Array, size: int, seed: int | None, dataset: int = 0
) -> list[Batch]:
    """Put `rows` into batches of `size` of about equal length.

    They are shuffled by `seed`, or in order of length if it is None. Instructions are sorted within
    buckets of BUCKET batches, so that there is little padding and the order still changes with the
    seed.
    """
    if seed is None:
        order = sorted(rows, key=lambda r: len(tokens[r]))
        return [pad([tokens[r] for r in part], part, dataset) for part in _chunks(order, size)]
    random = np.random.default_rng(seed)
    shuffled = list(random.permutation(rows))
    groups = [
        part
        for bucket in _chunks(shuffled, size * BUCKET)
        for part in _chunks(sorted(bucket, key=lambda r: len(tokens[r])), size)
    ]
    ordered = [groups[i] for i in random.permutation(len(groups))]
    return [pad([tokens[r] for r in part], part, dataset) for part in ordered]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def pad(tokens: Sequence[Int64Array], rows: Sequence[int] | Int64Array, dataset: int) -> Batch:
    """Pad prompts, with these row numbers in dataset number `dataset`, to one length."""
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    padded = np.zeros((len(tokens), int(lengths.max())), dtype=np.int64)
    for i, prompt in enumerate(tokens):
        padded[i, : lengths[i]] = prompt
    return Batch(padded, lengths, np.asarray(rows), dataset)
