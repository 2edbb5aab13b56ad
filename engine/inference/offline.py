"""Score all outcomes of a data folder with a bundle, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from engine.api.candidate import Candidate, TaskResult
from engine.bundle.arrays import ScoringArrays, load_arrays
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.task_places import normalized
from engine.bundle.types import Float32Array, Int64Array
from engine.datasets.outcomes import Outcomes
from engine.inference.backend import Backend, ScoringHead, log_odds
from engine.inference.devices import open_backend
from engine.registry.matching.task_match import add_log_odds
from engine.registry.onnx_encoder import load_encoder

BATCH_SIZE = 8
MAX_QUESTIONS = 20  # of a task that its place is computed from; 5 cost .006 of AUC
NO_CANDIDATES = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class OfflineScores:
    """Probabilities of N instructions and M candidates.

    p: (N, M). input_tokens: (N,). embeddings: (N, D) of the instructions, see BatchScores.
    """

    p: Float32Array
    input_tokens: Int64Array
    embeddings: Float32Array

    @property
    def logits(self) -> Float32Array:
        """(N, M) log-odds."""
        return log_odds(self.p)


@dataclass(frozen=True)
class InstructionEmbedder:
    """Embeds instructions as a server with this bundle does. width: D."""

    backend: Backend
    head: ScoringHead
    tokenizer: Tokenizer
    width: int

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Return the embeddings (N, D) of instructions."""
        prompts = [render(text, self.tokenizer).tokens for text in texts]
        table = np.zeros((1, self.width), dtype=np.float32)
        found = np.empty((len(texts), self.width), dtype=np.float32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            tokens = [prompts[i] for i in rows]
            scores = self.backend.probabilities(tokens, table, NO_CANDIDATES, self.head)
            found[rows] = scores.embeddings
        return found


def open_embedder(bundle: Path) -> InstructionEmbedder:
    """Open the embedder of a bundle folder; raises BundleError."""
    manifest, arrays = read_manifest(bundle, "bundle"), load_arrays(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    return InstructionEmbedder(open_backend(bundle, manifest), head, tokenizer, manifest.width)


def places_of(
    questions: Sequence[Sequence[str]], embedder: InstructionEmbedder, space: InstructionSpace
) -> Float32Array:
    """Return the places (T, P) of T tasks from the texts of their questions, one or more each."""
    texts = [text for each in questions for text in each[:MAX_QUESTIONS]]
    owners = np.repeat(np.arange(len(questions)), [len(q[:MAX_QUESTIONS]) for q in questions])
    embeddings = embedder.embed(texts)
    means = [embeddings[owners == task].mean(axis=0) for task in range(len(questions))]
    return normalized(space.project(np.stack(means) - space.mean))


def pack_places(
    questions: Sequence[Sequence[str]], embedder: InstructionEmbedder, arrays: ScoringArrays
) -> list[bytes]:
    """Return what TaskResult.place holds of T tasks, empty for tasks without questions; an empty
    list if the bundle knows no places."""
    if arrays.places is None:
        return []
    packed = [b""] * len(questions)
    asked = [task for task, each in enumerate(questions) if each]
    if asked:
        found = places_of([questions[t] for t in asked], embedder, arrays.instruction_space)
        for task, place in zip(asked, found, strict=True):
            packed[task] = arrays.places.pack(place)
    return packed


def candidates_of(outcomes: Outcomes, places: Sequence[bytes] = ()) -> list[Candidate]:
    """Return the candidates of `outcomes`, each with the results of the tasks it took.

    places: T packed places of the tasks, see task_places_of; empty if they are unknown.
    """
    test = outcomes.test
    known = places or [b""] * len(test.keywords)
    return [
        Candidate(
            f"c{i}",
            tuple(
                TaskResult(keywords, float(accuracy), place=place)
                for keywords, accuracy, place in zip(test.keywords, row, known, strict=True)
                if not np.isnan(accuracy)
            ),
        )
        for i, row in enumerate(test.accuracies)
    ]


def score_outcomes(bundle: Path, outcomes: Outcomes, *, matched: bool = True) -> OfflineScores:
    """Score every instruction for every candidate of `outcomes`, with a progress bar.

    bundle: folder of the bundle. matched: whether instructions are matched with the tasks of the
    test, as a server does. Raises BundleError.
    """
    embedder = open_embedder(bundle)
    questions = outcomes.test.questions
    places = pack_places(questions, embedder, load_arrays(bundle)) if matched else []
    candidates = candidates_of(outcomes, places)
    return score_candidates(
        bundle, outcomes.texts, candidates, matched=matched, label=outcomes.name, embedder=embedder
    )


def score_candidates(
    bundle: Path,
    texts: Sequence[str],
    candidates: Sequence[Candidate],
    *,
    matched: bool = True,
    label: str = "texts",
    embedder: InstructionEmbedder | None = None,
) -> OfflineScores:
    """Score every instruction for every candidate, with a progress bar.

    bundle, matched: see score_outcomes. label: for the progress bar. embedder: of the bundle, if it
    is open. Raises BundleError.
    """
    embedder = embedder or open_embedder(bundle)
    encoder = load_encoder(bundle, load_arrays(bundle), cut_long_tasks=True)
    prompts = [render(text, embedder.tokenizer) for text in texts]
    match = encoder.match(candidates) if matched else None
    embeddings = np.stack([encoder.encode(c) for c in candidates])
    all_rows = np.arange(len(embeddings))
    p = np.empty((len(prompts), len(candidates)), dtype=np.float32)
    instructions = np.empty((len(prompts), embedder.width), dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    for start in track(range(0, len(order), BATCH_SIZE), description=f"score {label}"):
        rows = order[start : start + BATCH_SIZE]
        tokens = [prompts[i].tokens for i in rows]
        scores = embedder.backend.probabilities(tokens, embeddings, all_rows, embedder.head)
        instructions[rows] = scores.embeddings
        p[rows] = scores.p
        if match is not None:
            p[rows] = add_log_odds(scores.p, match.log_odds(scores.embeddings))
    input_tokens = np.array([prompt.input_tokens for prompt in prompts])
    return OfflineScores(p, input_tokens, instructions)
