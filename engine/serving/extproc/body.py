"""Request bodies as engine/api/openai.py reads them: what to route by, and the same bytes with
another model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.api import openai
from engine.api.errors import InvalidInputError, Violation
from engine.api.limits import is_utf8

MODEL = "model"
ROUTED = ("/chat/completions", "/completions", "/responses", "/messages")  # ends of paths
NOTHING_TO_READ = Violation(
    "body",
    "has no text to route by: no user turn, prompt or input with text. Send text, or name a model.",
)


@dataclass(frozen=True)
class Body:
    """A JSON object; larger than its bytes, so not to be kept. model: the top-level one,
    None where there is none or it is no string. place: of its value, among the bytes."""

    members: Mapping[str, Any]
    model: str | None
    place: slice
    tools_chars: int


@dataclass(frozen=True)
class Instruction:
    """text: what is read. context_chars: what else the candidate will read. modalities, features:
    words that it needs, see candidate.proto. answer_tokens: the most that it may write."""

    text: str
    context_chars: int
    modalities: tuple[str, ...]
    features: tuple[str, ...]
    answer_tokens: int


def parse(raw: bytes) -> Body:
    """Raises InvalidInputError where it is no JSON object, has two models, or see json_members."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8 at byte {error.start}; expected a JSON object in UTF-8."
        raise InvalidInputError(Violation("body", wrong)) from None
    found = members(text)
    models = [m for m in found if m.key == MODEL]
    if len(models) > 1:
        raise InvalidInputError(Violation("model", f"is there {len(models)} times; send one."))
    model = models[0].value if models and isinstance(models[0].value, str) else None
    begin, end = (models[0].begin, models[0].end) if models else (0, 0)
    first = len(text[:begin].encode())
    return Body(
        {m.key: m.value for m in found},
        model,
        slice(first, first + len(text[begin:end].encode())),
        sum(m.end - m.begin for m in found if m.key in ("tools", "functions")),
    )


def with_model(raw: bytes, place: slice, name: str) -> bytes:
    """The body with `name` as its model; every other byte as it came. place: see Body."""
    return b"".join((raw[: place.start], json.dumps(name).encode(), raw[place.stop :]))


def is_routed(path: str) -> bool:
    """Whether bodies of that path (with or without a query) are among those read here."""
    return path.partition("?")[0].rstrip("/").endswith(ROUTED)


def instruction(body: Body) -> Instruction:
    """The last user turn that has text; without one, the last turn that has. Raises
    InvalidInputError where nothing has."""
    turns = openai.turns(body.members)
    if not turns:
        raise InvalidInputError(NOTHING_TO_READ)
    text = ([text for role, text in turns if role == "user"] or [turns[-1][1]])[-1]
    return Instruction(
        text=text if is_utf8(text) else text.encode(errors="replace").decode(),
        context_chars=sum(len(said) for _, said in turns) - len(text) + body.tools_chars,
        modalities=openai.modalities(body.members),
        features=openai.features(body.members),
        answer_tokens=openai.answer_tokens(body.members),
    )


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
