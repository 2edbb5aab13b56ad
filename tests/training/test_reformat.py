"""Another form of a question asks the same: same question, same options, a mark each."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.reformat import options, reformat

WORDS = st.text("abc de\nA.)", min_size=1, max_size=30).map(str.strip).filter(bool)


@given(st.integers(0, 2**32 - 1), WORDS, st.lists(WORDS, min_size=2, max_size=10))
def test_reformat_keeps_question_and_options(seed: int, stem: str, listed: list[str]) -> None:
    text = "\n".join([stem, *(f"{chr(65 + i)}. {option}" for i, option in enumerate(listed))])
    found = reformat(np.random.default_rng(seed), text)
    assert stem in found
    question, apart = options(text)
    assert "\n".join([question, *(f"{chr(65 + i)}. {o}" for i, o in enumerate(apart))]) == text
    for option in apart:
        assert option in found
    assert len(found) <= len(text) + 70


def test_reformat_shuffles_options_and_letters_them_in_order() -> None:
    text = "Which?\nA. one\nB. two\nC. three"
    forms = {reformat(np.random.default_rng(seed), text) for seed in range(200)}
    assert len(forms) > 50
    orders = {tuple(re.findall("one|two|three", form)) for form in forms}
    assert len(orders) == 6
    assert all(re.findall(r"\b[ABC]\b(?=[.):] \w)", form) == list("ABC") for form in forms)


def test_options_that_refer_to_others_keep_their_order() -> None:
    text = "Which?\nA. one\nB. two\nC. A and B"
    for seed in range(50):
        found = reformat(np.random.default_rng(seed), text)
        assert re.findall("one|two|A and B", found) == ["one", "two", "A and B"]


def test_text_without_options_is_kept() -> None:
    for text in ("Write a function.\nB. is not the first letter\nC. nor this", "A. alone"):
        assert options(text) == (text, [])
        assert text in reformat(np.random.default_rng(0), text)
