"""Tokens by words are the library's tokens, whatever the text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bundle.word_tokenizer import MAX_CHARS, WORD_CHARS, WordTokenizer, open_tokenizer
from tools.processes import BUNDLE

BY_WORDS = open_tokenizer(BUNDLE)
# What the pattern tells apart, and its borders: quotes, digits, kinds of space, control characters.
HARD = " \t\n\r\v\f\x1c\x1f\0'stmdrevllSTZ09!?.<|>_-\x7f\""


def both(text: str) -> tuple[list[int], list[int]]:
    assert isinstance(BY_WORDS, WordTokenizer)
    library = BY_WORDS._library.encode(text, add_special_tokens=False).ids
    return BY_WORDS.encode(text, add_special_tokens=False).ids, library


@given(st.text(HARD, max_size=40) | st.text(st.characters(codec="ascii")) | st.text())
def test_any_text(text: str) -> None:
    found, expected = both(text)
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "We'll see: it's 3.14159  (roughly), isn't it?\n\n\tdef f(x1):\n        return x1 ** 2\n",
        "Begin <|im_start|>user\nHi<|im_end|>, then <filename>a.py and x<|y",
        "Ünïcode, 数学 and ٣٤ digits",
        "words " * MAX_CHARS,
        "Antidisestablishment" * WORD_CHARS + "=" * 99,
        "   1  a   !\x1c 2",
    ],
)
def test_texts_of_each_kind(text: str) -> None:
    found, expected = both(text)
    assert found == expected


def test_a_tokenizer_of_another_kind_is_used_as_it_is(tmp_path: Path) -> None:
    shutil.copy(BUNDLE / "encoder-tokenizer.json", tmp_path / "tokenizer.json")
    assert not isinstance(open_tokenizer(tmp_path), WordTokenizer)
