"""Put the letter in place of "the third option"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from engine.aptitude.marking.answer_words import answer_words
from engine.aptitude.marking.plain_text import fold
from engine.aptitude.questions import LETTERS

_ARTICLE = r"(?:\b(?:the|la|el|le|die|den|der|de|a|o) )?"
_LETTER = r"(?P<letter>[,:;]? ?\(?(?P<named>[a-z])\)?(?![\w'])(?=[\s.,;:!]|$))?"
# Not "the first option that ...": it may go on to say anything.
_CLOSES = (
    r"(?=[.,;:!)\n]|$| \(| [a-z]{1,3} (?:the )?"
    r"(?:correct|right|best|most|richtig|correcte|correcta|correta|corretta)\b)"
)


def with_letters(text: str, options: Sequence[str]) -> str:
    """Return the text with letters in place of ordinals and the word for option.

    "The third option, C" is "C". A letter that contradicts its ordinal stays next to it. Nothing
    changes if an option is worded that way itself.
    """
    folded = fold(text)
    if len(folded) != len(text) or not any(n in folded for n in answer_words().ordinal_nouns):
        return text
    pattern = _pattern()
    if any(pattern.search(fold(option[:200])) for option in options):
        return text
    pieces, at = [], 0
    for match in pattern.finditer(folded):
        position = answer_words().positions[match["ordinal"]]
        position = len(options) - 1 if position < 0 else position
        if position >= len(options):
            continue
        letter = LETTERS[position]
        named = (match["named"] or "").upper()
        end = match.end() if named == letter else match.end("noun")
        pieces += [text[at : match.start()], letter]
        at = end
    return "".join((*pieces, text[at:]))


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    ordinals = "|".join(map(re.escape, answer_words().positions))
    nouns = "|".join(map(re.escape, answer_words().ordinal_nouns))
    return re.compile(
        rf"{_ARTICLE}\b(?P<ordinal>{ordinals}) (?P<noun>(?:answer )?(?:{nouns}))\b"
        rf"{_LETTER}{_CLOSES}"
    )
