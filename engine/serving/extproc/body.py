"""JSON bodies of OpenAI-compatible requests: read what to route by, and replace the model.

The members of the top-level object are parsed one by one, because the position of the model's value
is needed: every other byte of the body reaches the upstream as the client sent it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from engine.api.errors import InvalidInputError, Violation

MODEL = "model"
# Ends of paths whose bodies may name a model. Gemini and Bedrock name it in the path; some gateways
# take it in the body.
ROUTED = (
    *("/chat/completions", "/completions", "/responses", "/messages", "/api/chat"),
    *("/api/generate", ":generateContent", ":streamGenerateContent", "/converse"),
    *("/converse-stream", "/interactions"),
)
OLLAMA = ("/api/chat", "/api/generate")  # take JSON whatever the content-type says
MAX_DECODINGS = 3  # of a path, by the proxies that it passes
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
MAX_MEMBERS = 1000
MAX_VALUES = 250_000  # strings, commas and brackets: 0.1 s to count, as much to parse
_ROUTED = tuple(end.casefold() for end in ROUTED)
_END_OF_PATH, _PARAMETERS = re.compile(r"[?#]"), re.compile(r";[^/]*")
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


@dataclass(frozen=True)
class Body:
    """A parsed JSON object; it takes more memory than its bytes, so do not keep it.

    model: the top-level one, None if there is none or it is not a string. model_position: of its
    value, in the bytes.
    """

    members: Mapping[str, Any]
    model: str | None
    model_position: slice


def parse(raw: bytes) -> Body:
    """Parse a body.

    Raises:
        InvalidInputError: it is not a JSON object in UTF-8, has two models, or exceeds a limit of
            members(). The message never quotes the body.
    """
    if mark := next((name for mark, name in BYTE_ORDER_MARKS if raw.startswith(mark)), ""):
        problem = f"begins with a byte order mark (BOM) of {mark}; send UTF-8 without it."
        raise InvalidInputError(Violation("body", problem))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start}; expected a JSON object in UTF-8."
        raise InvalidInputError(Violation("body", problem)) from None
    values: dict[str, Any] = {}
    spellings = []
    for member in members(text):
        values[member.key] = member.value
        if member.key.casefold() == MODEL:
            spellings.append(member)
    if len(spellings) > 1:  # decoders that ignore capitals take the last one
        problem = f"appears {len(spellings)} times; send it once."
        raise InvalidInputError(Violation("model", problem))
    models = [member for member in spellings if member.key == MODEL]
    model = models[0].value if models and isinstance(models[0].value, str) else None
    begin, end = (models[0].begin, models[0].end) if models else (0, 0)
    first = len(text[:begin].encode())
    return Body(values, model, slice(first, first + len(text[begin:end].encode())))


def with_model(raw: bytes, position: slice, name: str) -> bytes:
    """Return the body with `name` as its model, every other byte unchanged."""
    return b"".join((raw[: position.start], json.dumps(name).encode(), raw[position.stop :]))


def is_routed(path: str) -> bool:
    """Whether bodies of a path (with or without a query) ask for a choice of model.

    The path is read as the most lenient upstream does, or a client could get around the gateway's
    lists of candidates by another spelling of it.
    """
    return plain_path(path).endswith(_ROUTED)


def takes_any_type(path: str) -> bool:
    """Whether the upstreams of a path read JSON under any content-type, such as that of curl -d."""
    return plain_path(path).endswith(OLLAMA)


def plain_path(path: str) -> str:
    """Return a path as the most lenient upstream reads it: decoded, no query, in lower case."""
    plain = _END_OF_PATH.split(path, maxsplit=1)[0]
    for _ in range(MAX_DECODINGS):
        plain = unquote(plain)
    plain = _PARAMETERS.sub("", re.sub("/+", "/", plain))
    return plain.rstrip("/ ").casefold()


@dataclass(frozen=True)
class Member:
    """text[begin:end] is the value as the client wrote it."""

    key: str
    value: Any
    begin: int
    end: int


def members(text: str) -> list[Member]:
    """Parse a JSON object into its members, in order and with duplicates.

    Accepts what json.loads accepts but NaN and Infinity, up to MAX_MEMBERS and MAX_VALUES.

    Raises:
        InvalidInputError: the message never quotes `text`.
    """
    if len(text) > MAX_VALUES and _count_values(text) > MAX_VALUES:
        raise _invalid(f"has more than {MAX_VALUES} values")
    try:
        return _members(text)
    except RecursionError:
        raise _invalid("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _invalid(
            f"is not a valid JSON object: {error.msg} at character {error.pos}"
        ) from None
    except ValueError:  # of _no_constant, or of int()
        raise _invalid("has NaN, Infinity, or a number of more than 4,300 digits") from None


def _count_values(text: str) -> int:
    """Count strings, commas and brackets, at least up to MAX_VALUES."""
    count = at = 0
    for string in _STRING.finditer(text):
        count += 1 + _count_separators(text, at, string.start())
        at = string.end()
        if count > MAX_VALUES:
            return count
    return count + _count_separators(text, at, len(text))


def _count_separators(text: str, begin: int, end: int) -> int:
    return sum(text.count(sign, begin, end) for sign in ",[{")


def _members(text: str) -> list[Member]:
    parsed: list[Member] = []
    at = _expect(text, _skip(text, 0), "{")
    if text[at : at + 1] == "}":
        return _end(text, at + 1, parsed)
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("expected a key in double quotes", text, at)
        key, at = _DECODER.raw_decode(text, at)
        begin = _expect(text, _skip(text, at), ":")
        value, end = _DECODER.raw_decode(text, begin)
        parsed.append(Member(key, value, begin, end))
        if len(parsed) > MAX_MEMBERS:
            raise _invalid(f"has more than {MAX_MEMBERS} members")
        at = _skip(text, end)
        if text[at : at + 1] == "}":
            return _end(text, at + 1, parsed)
        at = _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _expect(text: str, at: int, sign: str) -> int:
    """Return where the next token begins after `sign`."""
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"expected '{sign}'", text, at)
    return _skip(text, at + 1)


def _end(text: str, at: int, parsed: list[Member]) -> list[Member]:
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("expected the end", text, at)
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _invalid(problem: str) -> InvalidInputError:
    return InvalidInputError(Violation("body", f"{problem}; expected a JSON object in UTF-8."))


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
