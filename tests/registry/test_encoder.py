"""The capability representation depends on every accuracy, and on nothing else."""

from __future__ import annotations

import gc
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.api.candidate import Candidate, TaskResult
from engine.bundle.arrays import Connector, TaskNorms, load_arrays
from engine.registry.catalog import read_catalog
from engine.registry.encoder import CapabilityEncoder, accuracy_weighted
from engine.registry.onnx_encoder import load_encoder
from tests.conftest import CHECKPOINT
from tools.processes import BUNDLE
from training.model.model import TextEncoder
from training.weights.base import load_base

CATALOG = read_catalog(BUNDLE / "zoo.json")


@pytest.fixture(scope="module")
def encoder() -> CapabilityEncoder:
    return load_encoder(BUNDLE, load_arrays(BUNDLE))


@pytest.mark.parametrize("index", range(50))
def test_each_accuracy_changes_the_embedding(encoder: CapabilityEncoder, index: int) -> None:
    before = CATALOG[0]
    results = list(before.aptitude)
    figure = results[index].accuracy
    results[index] = replace(results[index], accuracy=figure + (0.05 if figure < 0.5 else -0.05))
    changed = encoder.encode(replace(before, aptitude=tuple(results)))
    moved = np.linalg.norm(changed - encoder.encode(before))
    # One of 1,000 answers: little, and well above float noise.
    assert moved > 1e-3 * np.linalg.norm(changed)


@given(st.permutations(range(50)))
@settings(max_examples=20, deadline=None)
def test_embedding_does_not_depend_on_task_order(order: list[int]) -> None:
    encoder = _plain_encoder()
    shuffled = tuple(CATALOG[1].aptitude[i] for i in order)
    np.testing.assert_array_equal(
        encoder.encode(replace(CATALOG[1], aptitude=shuffled)), encoder.encode(CATALOG[1])
    )


def _plain_encoder() -> CapabilityEncoder:
    random = np.random.default_rng(0)
    known = {r.task: random.standard_normal(6).astype(np.float32) for r in CATALOG[1].aptitude}
    return CapabilityEncoder(
        embed=lambda texts: np.stack([known[t] for t in texts]),
        count_tokens=len,
        max_tokens=512,
        norms=TaskNorms(np.zeros(6, np.float32), dict.fromkeys(known, 0.5)),
        connector=Connector(np.eye(7, dtype=np.float32), np.zeros(7, np.float32)),
    )


def test_tasks_unknown_to_training_are_encoded(encoder: CapabilityEncoder) -> None:
    unknown = tuple(TaskResult(f"Cookery, Dish {i}", 0.5) for i in range(50))
    embedding = encoder.encode(replace(CATALOG[0], aptitude=unknown))
    assert np.isfinite(embedding).all()


def test_places_of_other_weights_are_named(
    encoder: CapabilityEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Kind: a bundle with other weights, under a store with tasks of one's own."""
    own = replace(CATALOG[0], id="mine", aptitude=(TaskResult("invoices", 0.5, 20, b"old" * 88),))
    encoder.match([CATALOG[1]])
    assert not caplog.text
    encoder.match([CATALOG[1], own])
    assert "the tasks of mine were placed by other weights" in caplog.text


@pytest.mark.parametrize(
    ("task", "known"),
    [
        ("Algebra, School", True),
        ("School, Algebra", True),
        ("School, part 3, Algebra", True),
        ("part 12, Algebra, School, part 1", True),
        ("Algebra, School, part", False),
        ("Algebra, School, part x", False),
        ("Algebra, School, apart 3", False),
        ("Algebra, School, part 3 of 4", False),
    ],
)
def test_tasks_are_known_by_their_keywords_without_numbers_of_parts(task: str, known: bool) -> None:
    norms = TaskNorms(np.zeros(2, np.float32), {"Algebra, School, part 2": 0.25})
    (mean,) = norms.of([task])
    assert mean == 0.25 if known else np.isnan(mean)


def test_unknown_and_usual_numbers_of_questions_are_the_same(encoder: CapabilityEncoder) -> None:
    def encoded(questions: int) -> NDArray[np.float32]:
        stated = tuple(replace(r, questions=questions) for r in CATALOG[2].aptitude)
        return encoder.encode(replace(CATALOG[2], aptitude=stated))

    for questions in (20, 700):
        np.testing.assert_array_equal(encoded(questions), encoded(0))
    assert np.abs(encoded(5) - encoded(0)).max() > 1e-3


def test_the_level_does_not_depend_on_which_tasks_have_few_questions() -> None:
    means = np.linspace(0.2, 0.9, 8)
    counts = np.array([1, 1, 1, 1, 20, 20, 20, 20])
    vectors = np.eye(8, dtype=np.float32)
    c = accuracy_weighted(means + 0.05, means, vectors, counts)
    np.testing.assert_allclose(c, [0] * 8 + [means.mean() + 0.05], atol=1e-6)


def test_cache_of_task_vectors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is cut, the tasks of the candidate at hand stay."""
    monkeypatch.setattr("engine.registry.encoder.MAX_CACHED_TASKS", 3)
    encoder = _plain_encoder()
    encoder._embed = lambda texts: np.stack([np.full(6, len(t), np.float32) for t in texts])
    first = Candidate("a", tuple(TaskResult(f"unknown {i}", 0.5) for i in range(5)))
    second = Candidate("b", (*first.aptitude[:2], TaskResult("another", 0.5)))
    before = encoder.encode(first)
    encoder.encode(second)
    np.testing.assert_array_equal(encoder.encode(first), before)


def test_onnx_encoder_matches_torch(encoder: CapabilityEncoder) -> None:
    torch_encoder = TextEncoder(load_base(str(CHECKPOINT / "encoder")))
    texts = [r.task for r in CATALOG[0].aptitude] + ["x", "word " * 300]
    found = encoder._embed(texts)
    np.testing.assert_allclose(found, torch_encoder.embed(texts), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("aptitude", "words"),
    [
        (CATALOG[0].aptitude[:49], "has 49 accuracies, expected"),
        ((*CATALOG[0].aptitude[:49], TaskResult("x", 1.5)), "is 1.5, expected a share"),
        ((*CATALOG[0].aptitude[:49], TaskResult("x", float("nan"))), "is nan, expected a share"),
        ((*CATALOG[0].aptitude[:49], CATALOG[0].aptitude[0]), "repeats"),
        ((*CATALOG[0].aptitude[:49], TaskResult(" ", 0.5)), "name the task"),
    ],
)
def test_invalid_aptitude_results_are_named(aptitude: tuple[TaskResult, ...], words: str) -> None:
    from engine.api.candidate import validate

    problems = validate(Candidate("x", aptitude))
    assert any(words in p.description for p in problems)


def test_the_collector_does_not_walk_the_results_of_a_table() -> None:
    """Kind: a full table, whose 50,000 results held up the event loop in each full collection."""

    def tracked() -> int:
        gc.collect()
        return sum(type(thing) is TaskResult for thing in gc.get_objects())

    before = tracked()
    results = [TaskResult(f"task {i}", i / 100) for i in range(50)]
    table = [Candidate(f"c{i}", tuple(results)) for i in range(100)]
    aptitude, expected = table[7].aptitude, tuple(results)
    del results[:]
    assert aptitude == expected
    assert (aptitude[3], aptitude[-2:], len(aptitude)) == (expected[3], expected[-2:], 50)
    assert pickle.loads(pickle.dumps(table[7])) == table[7] != Candidate("c7", expected[1:])
    assert len({Candidate("c7", expected), table[7]}) == 1
    del expected
    assert tracked() == before
