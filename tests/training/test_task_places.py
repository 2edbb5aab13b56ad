"""Test what the shipped places are made from, and that offline scoring matches as a server does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.bundle.arrays import load_arrays
from engine.bundle.task_places import load_task_places, normalized
from engine.bundle.training_set import load_training_set
from engine.datasets.outcomes import read_outcomes
from engine.inference.offline import candidates_of, open_embedder, pack_places, score_outcomes
from engine.registry.catalog import read_catalog
from engine.registry.matching.task_match import add_log_odds
from engine.registry.onnx_encoder import load_encoder
from tests.support import datasets
from tools.processes import BUNDLE, ROOT
from training import task_places
from training.evaluation.texts import score_texts

SHIPPED = load_training_set(ROOT / "pretrained")


def test_shipped_places_are_of_the_shipped_test_and_hold_no_text() -> None:
    shipped, served = load_task_places(ROOT / "pretrained"), load_arrays(BUNDLE).places
    assert shipped is not None
    assert served is not None
    assert shipped.id == served.id
    (candidate, *_) = read_catalog(BUNDLE / "zoo.json")
    assert set(served.of_tasks) == {result.task for result in candidate.aptitude}
    cosines = np.stack(list(served.of_tasks.values())) @ np.stack(list(served.of_tasks.values())).T
    assert (cosines.argmax(axis=1) == np.arange(50)).all()
    with np.load(ROOT / "pretrained" / "task_places.npz") as file:
        texts = [name for name in file.files if file[name].dtype.kind not in "f"]
    assert set(texts) == {"places_space", "places_tasks", "places_trained"}


def test_keywords_are_mapped_to_places_by_what_texts_show() -> None:
    random = np.random.default_rng(0)
    keywords = normalized(random.standard_normal((400, 12)).astype(np.float32))
    true = random.standard_normal((12, 5)).astype(np.float32)
    weight, bias = task_places.fit_keywords(keywords, keywords @ true + 0.3)
    found = normalized(keywords @ weight + bias)
    assert (found * normalized(keywords @ true + 0.3)).sum(axis=1).mean() > 0.98


def test_the_command_writes_places_of_the_questions_of_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = datasets.write(tmp_path / "one", subjects=2), tmp_path / "weights"
    out.mkdir()
    assert SHIPPED is not None
    known = [task_places.fingerprint(text) for text in read_outcomes(folder).texts]
    trained = replace(SHIPPED, fingerprints=np.array(sorted(known[:7]), dtype=np.uint32))
    monkeypatch.setattr(task_places, "load_training_set", lambda _: trained)
    arguments = ["--test", str(folder), "--data", str(folder), "--texts", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["task_places", "--bundle", str(BUNDLE), *arguments])
    task_places.main()
    written = load_task_places(out)
    assert written is not None
    assert len(written.landmarks) == 7
    test = read_outcomes(folder).test
    space, embedder = load_arrays(BUNDLE).instruction_space, open_embedder(BUNDLE)
    rows = embedder.embed(test.questions[0][:20]).mean(axis=0)
    expected = normalized(space.project(rows - space.mean))
    assert written.of_tasks[test.keywords[0]] @ expected > 0.999


def test_offline_scores_are_those_of_the_weights_and_the_match(tmp_path: Path) -> None:
    outcomes = read_outcomes(datasets.write(tmp_path / "one", subjects=2))
    outcomes = outcomes.take(np.arange(12))
    arrays = load_arrays(BUNDLE)
    matched, plain = (
        score_outcomes(BUNDLE, outcomes),
        score_outcomes(BUNDLE, outcomes, matched=False),
    )
    places = pack_places(outcomes.test.questions, open_embedder(BUNDLE), arrays)
    encoder = load_encoder(BUNDLE, arrays, cut_long_tasks=True)
    match = encoder.match(candidates_of(outcomes, places))
    assert match is not None
    added = match.log_odds(plain.embeddings)
    assert matched.p == pytest.approx(add_log_odds(plain.p, added), abs=1e-6)
    assert matched.embeddings == pytest.approx(plain.embeddings)


def test_candidates_of_a_catalog_are_scored_with_their_numbers_of_questions() -> None:
    """Kind: figures of an evaluation that no server would give."""
    (candidate, *_) = read_catalog(BUNDLE / "zoo.json")
    few = tuple(replace(r, questions=1 + i % 3) for i, r in enumerate(candidate.aptitude))
    p, _ = score_texts(
        BUNDLE, ["Why is the sky blue?"], [candidate, replace(candidate, aptitude=few)]
    )
    assert abs(p[0, 0] - p[0, 1]) > 1e-3
