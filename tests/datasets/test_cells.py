"""Cells that hold lists, JSON or numbers as text: decoded or refused, never read as prose."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.datasets.cells import CellError, decode, number, plain_text, score

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
CONTAINERS = JSON.filter(lambda value: isinstance(value, list | dict))
NEARLY_LISTS = st.text(st.sampled_from("[]{}()'\"\\,: abuUNx01.%$\n-eE/"))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("['Mark', 'Ana']", ["Mark", "Ana"]),
        ("['Write a poem.', 'Now shorten\\nit.']", ["Write a poem.", "Now shorten\nit."]),
        ("""["It's", 'a "b"']""", ["It's", 'a "b"']),
        ("['one' 'two'\n 'three']", ["one", "two", "three"]),  # numpy prints no commas
        ("array(['one', 'two'], dtype=object)", ["one", "two"]),
        ("{'text': array(['x', 'y'], dtype=object), 'n': None}", {"text": ["x", "y"], "n": None}),
        ("('one', 'two')", ["one", "two"]),
        ('[{"role": "user", "content": "Hi"}]', [{"role": "user", "content": "Hi"}]),
        ('"[{\\"role\\": \\"user\\"}]"', [{"role": "user"}]),
        ("\ufeff[1, 2]", [1, 2]),
        ('"\\u00e9t\\u00e9,\\nplease"', "été,\nplease"),
        ("b'n\\xc3\\xa9e'", "née"),
    ],
)
def test_lists_and_json_as_text_are_decoded(cell: str, value: Any) -> None:
    assert decode(cell) == value


@pytest.mark.parametrize(
    "prose",
    [
        "[INST] What is it? [/INST]",
        "[1, 2] + [3] is what in Python?",
        "['a', 'b'] * 2 gives?",
        "{name}, who are you?",
        '("Well," she said',
        "'Twas brillig",
        "array of what?",
        "",
    ],
)
def test_prose_that_begins_with_a_bracket_stays(prose: str) -> None:
    assert decode(prose) == prose


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("['Mark', 'An", "cannot be read|ends in the middle"),
        ('{"role": "user", ', "ends in the middle"),
        ("['It's', 'b']", "cannot be read"),
        ("['a' ... 'z']", "cut with"),
        ("[[" * 50, "nested"),
        ("[" * 100_000, "nested"),
        ("['a', " + "'b', " * 2_000_000, "more than"),
    ],
)
def test_torn_and_hostile_lists_are_refused(cell: str, problem: str) -> None:
    with pytest.raises(CellError, match=problem):
        decode(cell)


@given(CONTAINERS)
def test_what_python_and_json_write_is_read_back(value: Any) -> None:
    assert decode(repr(value)) == value
    assert decode(json.dumps(value)) == value
    assert decode(json.dumps(json.dumps(value))) == value


@given(NEARLY_LISTS | st.text() | JSON)
def test_any_cell_is_read_or_refused(cell: Any) -> None:
    with suppress(CellError):
        assert isinstance(number(cell), float)
    with suppress(CellError):
        found = score(cell)
        assert math.isnan(found) or 0 <= found <= 1
    with suppress(CellError):
        assert isinstance(plain_text(cell), str)
    with suppress(CellError):
        assert decode(decode(cell)) == decode(cell) or cell != cell


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("85%", 0.85),
        ("87.5 %", 0.875),
        ("99,9%", 0.999),
        ("0,85", 0.85),
        ("1,234.5", 1234.5),
        ("1.234,5", 1234.5),
        ("1\u202f234,5", 1234.5),
        ("1,234,567", 1234567.0),
        ("$0.0012", 0.0012),
        ("0.01 USD", 0.01),
        ("2.5e-05", 2.5e-05),
        ("\u22121", -1.0),
        ("3/4", 0.75),
        ("True", 1.0),
        ("incorrect", 0.0),
        (True, 1.0),
    ],
)
def test_numbers_are_read_as_people_write_them(cell: Any, value: float) -> None:
    assert number(cell) == pytest.approx(value)


@pytest.mark.parametrize("cell", [None, "", " ", "n/a", "NaN", "NULL", "\\N", "-", math.nan])
def test_missing_numbers_are_nan(cell: Any) -> None:
    assert math.isnan(number(cell))


@pytest.mark.parametrize("cell", ["1,234", "0.5.5", "12,34,5", "high", "[0.5]", [0.5], "1/0"])
def test_what_is_no_number_or_two_is_refused(cell: Any) -> None:
    with pytest.raises(CellError):
        number(cell)


def test_score_outside_its_range_says_how_to_write_percent() -> None:
    with pytest.raises(CellError, match=r"is 85, expected 0 to 1; for percent, write 85%"):
        score("85")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("What?", "What?"),
        ('[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]', "S\nU"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "U"}]}]}', "U"),
        ({"contents": [{"role": "user", "parts": [{"text": "G"}]}]}, "G"),
        ('{"question": "Q", "k": 3}', "Q"),
        (b"bytes", "bytes"),
        (7, "7"),
    ],
)
def test_text_is_taken_from_lists_messages_and_bodies(cell: Any, text: str) -> None:
    assert plain_text(cell) == text


@pytest.mark.parametrize("cell", [None, "", "[]", "{}", "[1, 2]", '{"a": 1}', "['a', ", b"\xe9"])
def test_cell_without_text_is_refused(cell: Any) -> None:
    with pytest.raises(CellError):
        plain_text(cell)
