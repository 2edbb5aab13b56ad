"""Represent candidates in the ways that the ablations and the paper's method compare.

The served representation is in engine/registry/encoder.py; those here are only trained and
measured. They stay fixed through training: no accuracies are redrawn, and no synthetic
candidates are added. A representation can have several variants (a text has one for each order of
the tasks). A training step shows one of them at random, and scoring averages the probabilities of
all of them, as Model-SAT does.

Shapes: V variants, B instructions, M candidates, T tasks, C representation width, E encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.special import expit

from engine.api.candidate import TaskResult
from engine.api.errors import InvalidInputError, Violation
from engine.bundle.arrays import TaskNorms
from engine.bundle.prompt import Tokenizer
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.aptitude_test import AptitudeTest
from engine.datasets.outcomes import Outcomes
from training.config import TrainingConfig
from training.data.capability import Capabilities, capabilities
from training.data.dataset import Batch, Dataset, StepInputs, build_dataset
from training.data.near_duplicates import CleanSplit, split_folders
from training.model.model import TextEncoder
from training.state import DatasetBuilder, TrainState, predict

Represent = Callable[[AptitudeTest, Capabilities, TextEncoder], Float32Array]
Embed = Callable[[Sequence[str]], Float32Array]
TEXT_VARIANTS = 2  # orders of the tasks, as in the paper
MIN_SPREAD = 0.001  # of texts, which a single candidate does not have


def capability_sentences(aptitude: Sequence[TaskResult]) -> list[str]:
    """Write the paper's capability representation, one sentence for each task."""
    return [
        f"The model achieves accuracy {r.accuracy:.0%} on the task of '{r.task}'." for r in aptitude
    ]


def pack(sentences: Sequence[str], count: Callable[[str], int], limit: int) -> list[str]:
    """Join sentences, in their order, into as few pieces of at most `limit` tokens as possible.

    Raises:
        InvalidInputError: a single sentence is longer than `limit`; nothing is cut silently.
    """
    pieces: list[str] = []
    for sentence in sentences:
        if count(sentence) > limit:
            raise InvalidInputError(
                Violation(
                    "aptitude",
                    f"a task's sentence has {count(sentence)} tokens, the encoder reads {limit};"
                    " shorten its keywords.",
                )
            )
        joined = f"{pieces[-1]} {sentence}" if pieces else sentence
        if pieces and count(joined) <= limit:
            pieces[-1] = joined
        else:
            pieces.append(sentence)
    return pieces


def text_representation(
    aptitude: Sequence[TaskResult], embed: Embed, count: Callable[[str], int], limit: int
) -> Float32Array:
    """Embed the paper's sentences in pieces that the encoder reads whole, and average the pieces.

    Args:
        aptitude: results in any order; equal results give an equal representation.
        embed: texts -> (N, E).
        count: text -> tokens.
        limit: tokens that the encoder reads.

    Returns:
        (V, E), one row for each of V = TEXT_VARIANTS orders of the tasks.
    """
    ordered = capability_sentences(sorted(aptitude, key=lambda r: r.task))
    variants = []
    for seed in range(TEXT_VARIANTS):
        order = np.random.default_rng(seed).permutation(len(ordered))
        pieces = pack([ordered[i] for i in order], count, limit)
        variants.append(embed(pieces).mean(axis=0))
    return np.stack(variants).astype(np.float32)


def weighted(test: AptitudeTest, served: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(1, M, E + 1): the served representation."""
    return served.of(test, served.vectors(test.keywords, encoder))[None]


def bare(test: AptitudeTest, served: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(1, M, T): accuracies less their means over the training candidates."""
    means = np.array([served.norms.means[k] for k in test.keywords])
    return np.asarray(test.accuracies - means, dtype=np.float32)[None]


def text_pieces(test: AptitudeTest, served: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(V, M, E): the paper's sentences in pieces that the encoder reads whole."""
    return _for_each_candidate(
        test, lambda r: text_representation(r, encoder.embed, encoder.count, encoder.limit)
    )


def truncated_text(test: AptitudeTest, served: Capabilities, encoder: TextEncoder) -> Float32Array:
    """(V, M, E): the sentences as one text, truncated to what the encoder reads."""

    def embed(results: list[TaskResult]) -> Float32Array:
        orders = [
            np.random.default_rng(seed).permutation(len(results)) for seed in range(TEXT_VARIANTS)
        ]
        texts = [" ".join(capability_sentences([results[i] for i in order])) for order in orders]
        return np.asarray(encoder.embed(texts), dtype=np.float32)

    encoder.tokenizer.enable_truncation(encoder.limit)
    c = _for_each_candidate(test, embed)
    encoder.tokenizer.no_truncation()
    return c


def _for_each_candidate(
    test: AptitudeTest, embed: Callable[[list[TaskResult]], Float32Array]
) -> Float32Array:
    every = []
    for row in test.accuracies:
        results = zip(test.keywords, row, strict=True)
        every.append(embed([TaskResult(k, float(a)) for k, a in results if not np.isnan(a)]))
    return np.stack(every, axis=1)


@dataclass(frozen=True)
class FixedCapabilities(Capabilities):
    """Several representations side by side. Shift and scale, (C,), bring each to unit size over
    the training candidates.

    parts: what is joined along C. served: the served representation of the same candidates.
    """

    parts: tuple[Represent, ...]
    served: Capabilities

    def variants(self, test: AptitudeTest, encoder: TextEncoder) -> Float32Array:
        """(V, M, C), standardized, of the candidates of `test`."""
        return self.standardize(_joined([p(test, self.served, encoder) for p in self.parts]))


def fixed_capabilities(
    parts: tuple[Represent, ...],
    test: AptitudeTest,
    encoder: TextEncoder,
    norms: TaskNorms | None = None,
) -> FixedCapabilities:
    """Fit the norms, unless given, and the scale on the candidates of `test`."""
    served = capabilities(test, encoder, norms)
    shifts, scales = [], []
    for part in parts:
        c = part(test, served, encoder)
        shifts.append(c.mean(axis=(0, 1)))
        scales.append(np.full(c.shape[-1], max(float(c.std(axis=1).mean()), MIN_SPREAD)))
    shift, scale = (np.concatenate(x).astype(np.float32) for x in (shifts, scales))
    return FixedCapabilities(served.norms, shift, scale, parts, served)


def _joined(parts: list[Float32Array]) -> Float32Array:
    """Join (V, M, C) arrays along C, every part repeated to the same number of variants."""
    most = max(len(p) for p in parts)
    return np.concatenate([np.repeat(p, most // len(p), axis=0) for p in parts], axis=-1)


@dataclass(frozen=True)
class FixedDataset(Dataset):
    """A dataset whose candidates are always shown as they are.

    variants: (V, M, C), standardized.
    """

    variants: Float32Array

    def step(
        self,
        random: np.random.Generator,
        batch: Batch,
        capability: Capabilities,
        config: TrainingConfig,
    ) -> StepInputs:
        """Show the M candidates, in one of the variants."""
        skills = np.nanmean(self.outcomes.test.accuracies, axis=1)
        c = self.variants[random.integers(len(self.variants))]
        return StepInputs(c, self.outcomes.scores[:, batch.rows].T.copy(), skills)


def fixed_dataset(
    outcomes: Outcomes,
    capability: FixedCapabilities,
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    parts: CleanSplit | None = None,
) -> FixedDataset:
    """Read `outcomes` as training does, its candidates as `capability` represents them."""
    dataset = build_dataset(outcomes, capability.served, encoder, tokenizer, parts)
    variants = capability.variants(outcomes.test, encoder)
    shared = {f.name: getattr(dataset, f.name) for f in fields(Dataset)}
    return FixedDataset(**shared | {"c": variants[0]}, variants=variants)


def fixed_datasets(*parts: Represent) -> DatasetBuilder:
    """Make what training.state.prepare builds its datasets with, for these representations."""

    def build(
        outcomes: Sequence[Outcomes],
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        norms: TaskNorms | None = None,
    ) -> tuple[Capabilities, list[FixedDataset]]:
        capability = fixed_capabilities(parts, outcomes[0].test, encoder, norms)
        return capability, [
            fixed_dataset(o, capability, encoder, tokenizer, parts)
            for o, parts in zip(outcomes, split_folders(outcomes), strict=True)
        ]

    return build


def predict_variants(run: TrainState, dataset: Dataset, rows: Int64Array) -> Float32Array:
    """(V, len(rows), M) log-odds of each variant; V is 1 for a dataset without variants."""
    if not isinstance(dataset, FixedDataset):
        return np.asarray(predict(run, dataset, rows)[None])
    return np.stack([predict(run, replace(dataset, c=c), rows) for c in dataset.variants])


def probabilities(run: TrainState, dataset: Dataset, rows: Int64Array) -> Float32Array:
    """(len(rows), M), the mean over the variants."""
    return np.asarray(expit(predict_variants(run, dataset, rows)).mean(axis=0))
