"""Notice words of a candidate that are near to those that requests ask for, but are not they.

Words of your own are fine, so this only gives notes: a candidate that lists `function_calling`
would never be chosen for a request with tools, and nothing would say why.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from engine.api.candidate import Candidate
from engine.api.conversation.providers import APIS

# Word that the gateway asks for -> how others call it. Separators do not matter.
ASKED_FOR = {
    "features": {
        "tools": (
            "tool",
            "tool_use",
            "tool_calls",
            "tool_calling",
            "functions",
            "function_calling",
        ),
        "json_mode": ("json", "json_object", "json_schema", "structured_output", "response_format"),
        **dict.fromkeys(APIS, ()),
    },
    "modalities": {
        "image": ("vision", "img", "picture"),
        "file": ("pdf", "document"),
        "audio": ("speech", "voice", "sound"),
        "video": ("movie",),
    },
}
SIMILAR = 0.84  # difflib's ratio from which a word is taken for a misspelt one


def notes(candidate: Candidate) -> Iterator[str]:
    """Yield a sentence for each feature or modality that may be meant as another word."""
    for label, asked in ASKED_FOR.items():
        for word in getattr(candidate, label):
            if word not in asked and (meant := _meant(word, asked)):
                yield f"{candidate.id}: {label} has {word!r}; requests ask for {meant!r}"


def _meant(word: str, asked: dict[str, tuple[str, ...]]) -> str:
    forms = {_plain(form): meant for meant, others in asked.items() for form in (meant, *others)}
    close = difflib.get_close_matches(_plain(word), forms, n=1, cutoff=SIMILAR)
    return forms[close[0]] if close else ""


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word)
