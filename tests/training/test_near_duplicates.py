"""Near-duplicates: what counts as one, what is a template, and that no test row is one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engine.datasets.aptitude_test import AptitudeTest
from engine.datasets.outcomes import Outcomes, normalize_text, read_outcomes, split
from tests.support import datasets
from tools.processes import ROOT
from training.data.near_duplicates import near_duplicates, place_of, split_folders

SHARED = ROOT.parent / "shared" / "data"
FOLDERS = (
    "mmlu_pro_cot",
    "helm_mmlu",
    "llmrouter9",
    "zeroeval",
    "kor_bench",
    "planbench",
    "lineage_2025h1",
    "medagents",
    "reasoning_gym",
    "shaberi_gpt-41",
)
LONG = "A farmer walks nine miles to a market with three goats and sells two of them for silver"
SHORT = "Who sold the third goat to Mira?"
JAPANESE = "山羊を三頭連れて市場まで歩いた農夫は何頭売りましたか"
SUFFIX = " Think about it with great care and then put nothing but the final number into a box."
INTRODUCTION = (
    "You are a patient helper who reads every puzzle twice before you begin to answer it. "
)
NOISE = [
    f"Entry {chr(97 + i)} speaks of {word} and of nothing else" for i, word in enumerate("klmnopqr")
]


def folder(name: str, texts: list[str], items: list[str] | None = None) -> Outcomes:
    scores = np.ones((1, len(texts)), np.float32)
    test = AptitudeTest([], [], np.zeros((1, 0), np.float32), None)
    kinds = [name] * len(texts)
    return Outcomes(name, texts, kinds, kinds, ["c"], scores, test, item_texts=items or [])


def found(known: Outcomes, other: Outcomes) -> list[int]:
    """For each text of `other`, the number of the text of `known` that it repeats."""
    flags = [np.ones(len(known.texts), bool), np.zeros(len(other.texts), bool)]
    return near_duplicates([known, other], flags)[1].tolist()


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (LONG, LONG.upper() + "!"),
        (LONG, LONG + SUFFIX),
        (INTRODUCTION + LONG, LONG),
        (LONG, "Yesterday, " + LONG.replace("for silver", "for a coat") + " and went home"),
        (SHORT, SHORT + SUFFIX),
        (INTRODUCTION + SHORT, SHORT + SUFFIX),
        ("2 + 3 = ?", "2 + 3?"),
        (SHORT + "\nA. Ann\nB. Bo", SHORT + "\nA. Cid\nB. Dee\nC. Eve"),
        (
            "山羊を三頭連れて市場まで歩いた農夫は何頭売りましたか",
            "次に答えよ。山羊を三頭連れて市場まで歩いた農夫は何頭売りましたか",
        ),
    ],
)
def test_the_same_question_is_found_in_other_words_around_it(known: str, other: str) -> None:
    first = folder("first", [INTRODUCTION + noise for noise in NOISE] + [known])
    second = folder("second", [noise + SUFFIX for noise in NOISE[::-1]] + [other])
    # Templates stand in five or more rows of their folder; the entries are the same in both.
    assert found(first, second)[-1] == len(NOISE)
    as_item = folder("first", [INTRODUCTION + noise for noise in NOISE], [known])
    assert found(as_item, second)[-1] == len(NOISE)
    assert place_of(len(NOISE), [as_item, second]) == (0, len(NOISE))


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (LONG, LONG.replace("miles", "steps").replace("three", "many")),
        (SHORT, "Who sold the last goat to Mira?"),
        (SHORT, "Who sold it?"),
        ("2 + 3 = ?", "2 + 30 = ?"),
    ],
)
def test_another_question_is_none(known: str, other: str) -> None:
    first = folder("first", [known + SUFFIX, *(n + SUFFIX for n in NOISE[:4])])
    second = folder("second", [INTRODUCTION + other, *(INTRODUCTION + n for n in NOISE[4:])])
    assert found(first, second) == [-1] * 5


def test_a_template_alone_is_no_evidence() -> None:
    first = folder("first", [f"{INTRODUCTION}{n} {INTRODUCTION}" for n in NOISE[:5]])
    second = folder("second", [INTRODUCTION + "Name a river", "Name a lake. " + INTRODUCTION])
    assert found(first, second) == [-1, -1]


def test_copies_of_a_question_do_not_make_it_a_template() -> None:
    first = folder("first", [LONG.upper() + "!" * i for i in range(8)])
    assert found(first, folder("second", [LONG + " today"])) == [0]


def test_test_rows_lose_their_near_duplicates_and_other_parts_nothing(tmp_path: Path) -> None:
    plain = read_outcomes(datasets.write(tmp_path))
    training, _, _ = split(plain.texts)
    first = folder("first", [*plain.texts, plain.texts[training[0]] + SUFFIX])
    (alone,) = split_folders([first])
    np.testing.assert_array_equal(alone.train, split(first.texts)[0])
    np.testing.assert_array_equal(alone.validation, split(first.texts)[1])
    everything = np.concatenate([alone.test, alone.near_duplicates])
    np.testing.assert_array_equal(np.sort(everything), split(first.texts)[2])
    repeated = [*plain.texts, *(t + SUFFIX for t in plain.texts)]
    (parts,) = split_folders([folder("repeated", repeated)])
    held = {*parts.train, *parts.validation}
    n = len(plain.texts)
    assert len(parts.near_duplicates)
    assert not any((row + n) % (2 * n) in held for row in parts.test)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[i : i + 12]) for i in range(len(words) - 11)}


@pytest.mark.slow
def test_no_test_row_of_the_real_folders_has_a_near_duplicate() -> None:
    """By sets of words, apart from the code under test: no hashes, no index."""
    paths = [SHARED / name for name in FOLDERS]
    if missing := [path.name for path in paths if not path.is_dir()]:
        pytest.skip(f"no ../shared/data with {', '.join(missing)}")
    folders = [read_outcomes(path) for path in paths]
    parts = split_folders(folders)
    templates: set[int] = set()
    known: set[int] = set()
    equal: set[str] = set()
    for outcomes, part in zip(folders, parts, strict=True):
        every = {normalize_text(t): t for t in (*outcomes.texts, *outcomes.item_texts)}
        counts: Counter[int] = Counter()
        for text in every.values():
            counts.update(hash(s) for s in _shingles(text))
        templates |= {s for s, count in counts.items() if count > 4}
        rows = [outcomes.texts[i] for i in (*part.train, *part.validation)]
        for text in (*rows, *outcomes.item_texts):
            known |= {hash(s) for s in _shingles(text)}
            equal.add(normalize_text(text))
    known -= templates
    for outcomes, part in zip(folders, parts, strict=True):
        assert len(part.test), outcomes.name
        for row in part.test:
            text = outcomes.texts[row]
            assert normalize_text(text) not in equal, (outcomes.name, row)
            shared = {hash(s) for s in _shingles(text)} & known
            assert not shared, (outcomes.name, row)
        taken = [{hash(s) for s in _shingles(outcomes.texts[r])} for r in part.near_duplicates]
        if outcomes.name != "shaberi_gpt-41":  # whose words are characters
            assert any(s & known for s in taken), outcomes.name
