"""Request bodies as engine/contract/openai.py reads them: what to route by, and the same bytes with
another model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.contract import openai
from engine.contract.errors import InvalidInputError, Violation
from engine.contract.prompt import is_utf8
from engine.serving.json_members import members

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
