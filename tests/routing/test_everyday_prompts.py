"""Everyday prompts get high probabilities, and what is no prompt is recognized.

Benchmarks hold no prompts that every strong candidate can do. Those in
tests/support/everyday_prompts.txt were written for these tests alone.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.training_set import load_training_set
from engine.bundle.types import Float32Array
from engine.inference.backend import ScoringHead, log_odds
from engine.inference.devices import open_backend
from engine.registry.catalog import read_catalog
from engine.registry.matching.task_match import add_log_odds
from engine.registry.onnx_encoder import load_encoder
from engine.registry.table import make_table
from engine.routing.decision import PromptInfo, with_unusualness
from tests.support import datasets
from tools.processes import BUNDLE
from training.difficulty.prompts import everyday_prompts, other_prompts

PROMPTS = Path(datasets.__file__).parent / "everyday_prompts.txt"
LANGUAGES, KINDS, STRONGEST = 12, 6, 5


def read_tests() -> list[tuple[str, str, str]]:
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t", 2) for line in lines if line and not line.startswith("#")]
    return [(language, kind, text.replace("\\n", "\n")) for language, kind, text in cells]


class Scorer:
    """Score texts for the shipped zoo as a server does."""

    def __init__(self) -> None:
        manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
        encoder = load_encoder(BUNDLE, arrays)
        candidates = read_catalog(BUNDLE / "zoo.json")
        levels = [np.mean([r.accuracy for r in c.aptitude]) for c in candidates]
        strongest = [candidates[i] for i in np.argsort(levels)[::-1][:STRONGEST]]
        entries = [(candidate, encoder.encode(candidate)) for candidate in strongest]
        self.table = make_table(1, entries, manifest.width, match=encoder.match)
        self.tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
        self.training_set = load_training_set(BUNDLE)
        self.backend = open_backend(BUNDLE, manifest)
        self.head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)

    def score(self, text: str) -> tuple[Float32Array, float]:
        """Return p (5,) and the out-of-distribution score."""
        assert self.table.match is not None
        assert self.training_set is not None
        tokens, rows = render(text, self.tokenizer).tokens, np.arange(STRONGEST)
        found = self.backend.probabilities([tokens], self.table.embeddings, rows, self.head)
        p = add_log_odds(found.p, self.table.match.log_odds(found.embeddings))[0]
        info = PromptInfo(len(tokens), False, self.training_set.ood_score(tokens))
        unusualness = self.table.match.unusualness(found.embeddings[0])
        ood_score = with_unusualness(info, unusualness).ood_score
        assert ood_score is not None
        return p, ood_score

    def unusualness(self, text: str) -> float:
        """Return the part of the out-of-distribution score that the embedding decides."""
        assert self.table.match is not None
        tokens, none = render(text, self.tokenizer).tokens, np.arange(0)
        found = self.backend.probabilities([tokens], self.table.embeddings, none, self.head)
        return self.table.match.unusualness(found.embeddings[0])


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer()


def test_there_are_200_prompts_in_12_languages_and_training_has_none_of_them() -> None:
    tests = read_tests()
    assert len({text for _, _, text in tests}) == 200
    assert len({language for language, _, _ in tests}) == LANGUAGES
    assert len({kind for _, kind, _ in tests}) == KINDS
    trained = {text.casefold() for text in everyday_prompts() + other_prompts()}
    assert not trained & {text.casefold() for _, _, text in tests}


def test_strong_candidates_are_expected_to_do_everyday_prompts(scorer: Scorer) -> None:
    found = [
        (language, kind, scorer.score(text)[0].mean()) for language, kind, text in read_tests()
    ]
    assert np.mean([p for _, _, p in found]) >= 0.9
    for column in (0, 1):
        for name in {row[column] for row in found}:
            assert np.mean([row[2] for row in found if row[column] == name]) > 0.8, name


@pytest.mark.parametrize(
    "question",
    [
        "Prove that the sum of the reciprocals of the primes diverges.",
        "Which mutation in the HBB gene causes haemoglobin C disease, and how is it inherited?",
        "Leite die Kerr-Metrik aus den Feldgleichungen her.",
        "証明してください:素数は無限にあり、その逆数の和は発散する。",
    ],
)
def test_a_short_question_for_experts_is_no_everyday_prompt(scorer: Scorer, question: str) -> None:
    easy, hard = scorer.score("What is the capital of Australia?")[0], scorer.score(question)[0]
    assert easy.mean() > 0.9
    assert log_odds(hard).mean() < log_odds(easy).mean() - 1


def bytes_of(draw: random.Random) -> list[str]:
    content = draw.randbytes(400)
    return [
        content.decode("latin-1"),
        content.decode("utf-8", "replace"),
        base64.b85encode(content).decode(),
        " ".join(f"{byte:08b}" for byte in content[:60]),
    ]


def logs(draw: random.Random) -> list[str]:
    """Return three logs of some 50 pages, in forms that training does not have."""

    def usb_line() -> str:
        seconds, port = draw.randrange(10**6), draw.randrange(9)
        return f"[{seconds:>9}.{seconds:06}] usb {port}-1: reset high-speed device number {port}"

    def buffer_line() -> str:
        day, clock, size = draw.randrange(10, 29), draw.randrange(10, 24), draw.randrange(9999)
        return f"{day}.11.2026 {clock}:{day} | T{size % 40} | Warnung | Puffer {size} voll, 7 ms"

    def peer_line() -> str:
        moment, peer = draw.randrange(10**10), draw.randrange(16**12)
        return f'time={moment} lvl=warn msg="Dropping peer" peer={peer:012x} err="i/o timeout"'

    return ["\n".join(make() for _ in range(2500)) for make in (usb_line, buffer_line, peer_line)]


@pytest.mark.parametrize("make", [bytes_of, logs])
def test_what_is_no_instruction_is_far_from_all_that_is_known(
    scorer: Scorer, make: Callable[[random.Random], list[str]]
) -> None:
    for text in make(random.Random(5)):
        assert scorer.score(text)[1] > 0.95, text[:80]


def test_questions_and_everyday_prompts_are_instructions(scorer: Scorer) -> None:
    texts = [text for _, _, text in read_tests()] + other_prompts()
    assert np.mean([scorer.unusualness(text) > 0.95 for text in texts]) < 0.02
