"""The members of a JSON object with the place of each value, so that one can be replaced and every
other character stays as it was.

What a text of any size costs is bounded: json.loads of 10 MB of `[]` holds the interpreter for
over a second, so a text of that many values is refused before it is read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.contract.errors import InvalidInputError, Violation

MAX_MEMBERS = 1000
MAX_VALUES = 250_000  # strings, commas and brackets: 0.1 s to count, as much to read
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


@dataclass(frozen=True)
class Member:
    """text[begin:end] is the value, as it was written."""

    key: str
    value: Any
    begin: int
    end: int


def members(text: str) -> list[Member]:
    """Of the object that `text` is, in order and with duplicates.

    Accepts what json.loads accepts but NaN and Infinity, of at most MAX_MEMBERS and MAX_VALUES.
    Raises InvalidInputError, which never holds a part of `text`.
    """
    if len(text) > MAX_VALUES and _values(text) > MAX_VALUES:
        raise _invalid(f"has more than {MAX_VALUES} values")
    try:
        return _members(text)
    except RecursionError:
        raise _invalid("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"is no JSON object: {error.msg} at character {error.pos}") from None
    except ValueError:  # a number of more than 4,300 digits, NaN
        raise _invalid("has a number that cannot be read") from None


def _values(text: str) -> int:
    """How many strings, commas and brackets there are, at least up to MAX_VALUES."""
    count = at = 0
    for string in _STRING.finditer(text):
        count += 1 + _signs(text, at, string.start())
        at = string.end()
        if count > MAX_VALUES:
            return count
    return count + _signs(text, at, len(text))


def _signs(text: str, begin: int, end: int) -> int:
    return sum(text.count(sign, begin, end) for sign in ",[{")


def _members(text: str) -> list[Member]:
    found: list[Member] = []
    at = _expect(text, _skip(text, 0), "{")
    if text[at : at + 1] == "}":
        return _end(text, at + 1, found)
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("expected a key in double quotes", text, at)
        key, at = _DECODER.raw_decode(text, at)
        begin = _expect(text, _skip(text, at), ":")
        value, end = _DECODER.raw_decode(text, begin)
        found.append(Member(key, value, begin, end))
        if len(found) > MAX_MEMBERS:
            raise _invalid(f"has more than {MAX_MEMBERS} members")
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            return _end(text, at + 1, found)
        at = _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _expect(text: str, at: int, sign: str) -> int:
    """Where the next token begins behind `sign`."""
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"expected '{sign}'", text, at)
    return _skip(text, at + 1)


def _end(text: str, at: int, found: list[Member]) -> list[Member]:
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("expected the end", text, at)
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _invalid(why: str) -> InvalidInputError:
    return InvalidInputError(Violation("body", f"{why}; expected a JSON object in UTF-8."))


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
