"""Data folders: all problems are reported, test items left out, equal questions kept together."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.training_set import describe, load_training_set, save_training_set
from engine.datasets.aptitude_test import MIN_ANSWERS, derive_items
from engine.datasets.outcomes import (
    drop_candidates,
    fingerprint,
    normalize_text,
    read_outcomes,
    split,
)
from tests.support import datasets


def test_invalid_folder_is_refused_with_every_problem(tmp_path: Path) -> None:
    data = datasets.write(tmp_path)
    scores = np.load(data / "scores.npz")["scores"]
    scores[1, 1] = 1.5
    np.savez(data / "scores.npz", scores=scores[:, :-1])
    lines = (data / "instructions.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"id": "q3", "benchmark": "made-up", "text": "  "})
    lines[4] = json.dumps({"id": "q4", "text": "no benchmark"})
    test = json.loads((data / "aptitude.json").read_text())
    test["scores"]["c2"][0] = 85
    del test["scores"]["c1"][0]
    (data / "aptitude.json").write_text(json.dumps(test))
    (data / "instructions.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidInputError) as refused:
        read_outcomes(data)
    for words in (
        "is (4, 79), expected (4, 80)",
        "1 values are outside [0, 1]",
        "first 'q3'",
        "line 5: has no ['benchmark']",
        "accuracies of ['c2'] are outside",
        "['c1'] do not have an accuracy for each",
    ):
        assert words in str(refused.value)
    (data / "scores.npz").unlink()
    with pytest.raises(InvalidInputError, match=r"has no \['scores.npz'\]"):
        read_outcomes(data)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("instructions.jsonl", "5\n[1]", r"line 1: not a JSON object \(a int\).*line 2"),
        (
            "candidates.json",
            '[{"name": ',
            r"candidates.json: JSONDecodeError.*expected a JSON list",
        ),
        ("candidates.json", '["x"]', "candidates.json: AttributeError"),
        ("scores.npz", "no archive", "scores.npz: .*expected a matrix"),
        ("aptitude.json", "{}", "aptitude.json: KeyError"),
        ("aptitude.json", '{"tasks": ["t"], "items": {}, "scores": {"c0": ["x"]}}', "ValueError"),
    ],
)
def test_malformed_file_is_named_with_expected_format(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    folder = datasets.write(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(InvalidInputError, match=re.compile(words, re.DOTALL)):
        read_outcomes(folder)


def test_normalization_distinguishes_questions_in_other_scripts() -> None:
    chinese = ["解释 DNA 的结构", "DNA 是什么时候发现的?", "解释 DNA 的结构!"]
    assert len({normalize_text(text) for text in chinese}) == 2
    assert normalize_text("What is «π» - exactly?") == normalize_text("what is exactly")


def test_derived_aptitude_test_has_at_most_fifty_tasks() -> None:
    subjects = [f"s{i % 250}" for i in range(25_000)]
    scores = np.random.default_rng(0).integers(0, 2, (3, 25_000)).astype(np.float32)
    items = derive_items(scores, subjects, np.arange(25_000))
    assert len(items) == 50
    assert {len(rows) for rows in items.values()} == {20}


def test_aptitude_items_are_left_out_by_id_and_by_question(tmp_path: Path) -> None:
    """By id, and by question: q8 asks what the item q7 asks."""
    path = datasets.write(tmp_path) / "instructions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[8]["text"] = rows[7]["text"].upper() + "?"
    path.write_text("\n".join(map(json.dumps, rows)))
    outcomes = read_outcomes(tmp_path)
    assert len(outcomes.texts) == datasets.INSTRUCTIONS - 2
    assert not any(text.split()[3] in ("7", "8") for text in outcomes.texts)


@pytest.mark.parametrize("seed", range(3))
def test_derived_items_distinguish_candidates(seed: int) -> None:
    """Items are drawn with weight r (1 - r) + .01, r being the share of candidates that answer."""
    rates = np.repeat([0.0, 0.1, 0.5, 1.0], 500)
    scores = (np.arange(20)[:, None] < 20 * rates).astype(np.float32)
    items = derive_items(scores, ["task"] * len(rates), np.arange(len(rates)), seed)["task"]
    assert len(items) == 400
    shares = {rate: (rates[items] == rate).mean() for rate in (0.0, 0.1, 0.5, 1.0)}
    # Without replacement, the half of the rows that is preferred is used up in part.
    assert shares[0.5] > 1.5 * shares[0.1] > 3 * shares[0.0]
    assert shares[0.5] > 1.5 * shares[0.1] > 3 * shares[1.0]
    assert shares[0.5] > 0.5


def test_aptitude_test_is_derived_if_folder_has_none(tmp_path: Path) -> None:
    with_items = datasets.write(tmp_path / "a", aptitude=False, subjects=2)
    outcomes = read_outcomes(with_items)
    again = read_outcomes(with_items)
    test = outcomes.test
    assert len(test.keywords) == 2
    assert test.answers is not None
    assert np.nanmean(test.accuracies, axis=1)[-1] == np.nanmean(test.accuracies, axis=1).max()
    np.testing.assert_array_equal(test.accuracies, again.test.accuracies)
    items = test.answers.shape[2] * 2
    assert len(outcomes.texts) <= datasets.INSTRUCTIONS - items + 1
    train, validation, held_out = split(outcomes.texts)
    lines = [json.loads(x) for x in (with_items / "instructions.jsonl").read_text().splitlines()]
    before = [len(part) for part in split([str(r["text"]) for r in lines])]
    # Items come from the training part alone: the parts that measure lose nothing.
    assert [len(validation), len(held_out)] == before[1:]
    assert len(train) < before[0]


@given(st.integers(0, 2**32 - 1))
def test_derived_items_are_distinct_training_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 2, (3, 120)).astype(np.float32)
    scores[random.random(scores.shape) < 0.2] = np.nan
    subjects = [f"s{i}" for i in random.integers(0, 3, 120)]
    training = np.flatnonzero(random.random(120) < 0.8)
    items = derive_items(scores, subjects, training, seed)
    for name, rows in items.items():
        assert len(rows) == len(set(rows)) >= MIN_ANSWERS
        assert set(rows) <= set(training.tolist())
        assert all(subjects[i] == name for i in rows)
        assert not np.isnan(scores[:, rows]).all(axis=0).any()


@given(st.text(min_size=1), st.sampled_from(["  ", "\n", "?!", " - "]))
def test_equal_questions_are_in_the_same_split(text: str, noise: str) -> None:
    other = text.upper().lower() + noise
    if normalize_text(text) == normalize_text(other):
        assert fingerprint(text) == fingerprint(other)
        assert [len(part) for part in split([text])] == [len(part) for part in split([other])]


def test_training_set_round_trip_scores_unseen_tokens_as_ood(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 50, 40) for _ in range(300)]
    save_training_set(tmp_path, describe([5, 3, 3, 2**32 - 1], prompts, 100))
    known = load_training_set(tmp_path)
    assert known is not None
    assert known.fingerprints.tolist() == [3, 5, 2**32 - 1]
    assert known.ood_score(np.arange(60, 90)) == 1.0
    assert 0.2 < np.mean([known.ood_score(p) for p in prompts]) < 0.8
    assert known.instruction_space is None
    mean, axes = random.normal(size=7).astype(np.float32), np.eye(7, 3, dtype=np.float32)
    save_training_set(tmp_path, replace(known, instruction_space=InstructionSpace(mean, axes)))
    again = load_training_set(tmp_path)
    assert again is not None
    assert again.instruction_space is not None
    assert again.instruction_space.mean.tolist() == mean.tolist()
    assert again.instruction_space.axes.tolist() == axes.tolist()
    assert again.quantiles.tolist() == known.quantiles.tolist()
    assert load_training_set(tmp_path / "nothing") is None


def test_rotations_of_a_question_merge_into_lowest_score(tmp_path: Path) -> None:
    data = datasets.write(tmp_path)
    lines = [json.loads(line) for line in (data / "instructions.jsonl").read_text().splitlines()]
    for place, row in enumerate((10, 40, 70)):
        lines[row] |= {"circle": "one question", "text": f"Which is it? \nA. {place}"}
    (data / "instructions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scores = np.load(data / "scores.npz")["scores"]
    scores[:, [10, 40, 70]] = [[1, 1, 1], [1, 0, 1], [1, np.nan, 1], [np.nan] * 3]
    np.savez(data / "scores.npz", scores=scores)

    found = read_outcomes(data)
    (row,) = [i for i, text in enumerate(found.texts) if text.startswith("Which is it?")]
    assert found.texts[row].endswith("0"), "the first rotation stands for all of them"
    np.testing.assert_array_equal(found.scores[:, row], [1, 0, 1, np.nan])

    test = json.loads((data / "aptitude.json").read_text())
    test["items"] = {"task_0": ["q70"]}
    (data / "aptitude.json").write_text(json.dumps(test))
    left = read_outcomes(data).texts
    assert not any(text.startswith("Which") for text in left), "an item, by any of its rotations"


def test_instructions_that_are_lists_bytes_or_torn_are_refused(tmp_path: Path) -> None:
    data = datasets.write(tmp_path)
    plain = (data / "instructions.jsonl").read_bytes()
    lines = [json.loads(line) for line in plain.splitlines()]
    lines[2]["text"] = ["Write a poem.", "Now shorten it."]
    packed = gzip.compress(plain)
    for name, content, problem in (
        (
            "instructions.jsonl",
            "\n".join(map(json.dumps, lines)).encode(),
            "line 3: text is a list",
        ),
        ("instructions.jsonl", plain.replace(b"text", b"\xe9", 1), "line 0 .not UTF-8"),
        ("instructions.jsonl.gz", packed[: len(packed) // 2], "cannot be read after line"),
    ):
        (data / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=problem):
            read_outcomes(data)


def test_candidates_without_outcomes_or_accuracies_are_dropped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = datasets.write(tmp_path)
    scores = np.load(folder / "scores.npz")["scores"]
    scores[0] = np.nan
    np.savez(folder / "scores.npz", scores=scores)
    test = json.loads((folder / "aptitude.json").read_text())
    del test["scores"]["c1"]
    test["scores"]["c2"] = [None] * 49 + [float("nan")]
    (folder / "aptitude.json").write_text(json.dumps(test))
    outcomes = read_outcomes(folder)
    assert outcomes.candidates == ["c3"]
    assert outcomes.scores.shape[0] == len(outcomes.test.accuracies) == 1
    assert set(outcomes.dropped) == {"c0", "c1", "c2"}
    assert "leaving out c0: scores.npz has no measured outcome" in caplog.text
    assert "leaving out c1: aptitude.json has no accuracy" in caplog.text
    np.savez(folder / "scores.npz", scores=np.full_like(scores, np.nan))
    with pytest.raises(InvalidInputError, match="no candidate can be used"):
        read_outcomes(folder)


def test_candidates_with_too_few_outcomes_for_a_derived_test_are_dropped(tmp_path: Path) -> None:
    folder = datasets.write(tmp_path, aptitude=False)
    scores = np.load(folder / "scores.npz")["scores"]
    scores[1, 2:] = np.nan
    np.savez(folder / "scores.npz", scores=scores)
    outcomes = read_outcomes(folder)
    assert outcomes.candidates == ["c0", "c2", "c3"]
    assert "too few outcomes" in outcomes.dropped["c1"]


def test_candidates_without_an_outcome_on_the_rows_that_are_left_are_dropped(
    tmp_path: Path,
) -> None:
    outcomes = read_outcomes(datasets.write(tmp_path))
    rows = np.flatnonzero(np.isnan(outcomes.scores[0]))
    left = drop_candidates(outcomes.take(rows))
    assert left.candidates == ["c1", "c2", "c3"]
    assert drop_candidates(left) is left
