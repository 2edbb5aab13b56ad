"""The members of a JSON object with the place of each value, so that one can be replaced and every
other character stays as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.contract.errors import InvalidInputError, Violation

_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Member:
    """text[begin:end] is the value, as it was written."""

    key: str
    value: Any
    begin: int
    end: int


def members(text: str) -> list[Member]:
    """Of the object that `text` is, in order and with duplicates.

    Accepts what json.loads accepts but NaN and Infinity. Raises InvalidInputError, which never
    holds a part of `text`.
    """
    try:
        return _members(text)
    except RecursionError:
        raise _invalid("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"is no JSON object: {error.msg} at character {error.pos}") from None
    except ValueError:  # a number of more than 4,300 digits, NaN
        raise _invalid("has a number that cannot be read") from None


def replaced(text: str, found: Sequence[Member], value: str) -> str:
    """`text` with that string as the value of every member of `found` (in order)."""
    literal, parts, at = json.dumps(value), [], 0
    for member in found:
        parts += [text[at : member.begin], literal]
        at = member.end
    return "".join(parts) + text[at:]


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
