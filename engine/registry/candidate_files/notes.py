"""Notice what is valid in a candidate, but probably not what was meant.

Words of your own are fine, but a candidate that lists `function_calling` would never be chosen for
a request with tools, and nothing would say why. A level by tasks of your own alone is no better
than these tasks are like the test's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from engine.api.candidate import Candidate
from engine.api.conversation.providers import APIS
from engine.registry.candidate_files.tasks import IMPUTED_QUESTIONS, PARTIAL, own_tasks

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
SIMILAR = 0.8  # difflib's ratio from which a word is taken for a misspelt one


def notes(candidate: Candidate) -> Iterator[str]:
    """Yield a sentence for each feature or modality that may be meant as another word, and for a
    level that rests on tasks of your own alone."""
    for label, asked in ASKED_FOR.items():
        for word in getattr(candidate, label):
            if word not in asked and (meant := _meant(word, asked)):
                yield f"{candidate.id}: {label} has {word!r}; requests ask for {meant!r}"
    own = own_tasks(candidate.aptitude)
    tested = {r.task for r in candidate.aptitude if r.questions != IMPUTED_QUESTIONS}
    if PARTIAL in candidate.tags and own and tested <= {*own}:
        yield (
            f"{candidate.id}: its level, {candidate.mean_accuracy():.2f}, rests on tasks of your"
            " own alone, which count as if they were as hard as the test's; it compares with"
            " candidates that took the same tasks, and probabilities can be tenths too high or low"
            " until outcomes are recorded"
        )


def _meant(word: str, asked: dict[str, tuple[str, ...]]) -> str:
    forms = {_plain(form): meant for meant, others in asked.items() for form in (meant, *others)}
    close = difflib.get_close_matches(_plain(word), forms, n=1, cutoff=SIMILAR)
    return forms[close[0]] if close else ""


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word)
