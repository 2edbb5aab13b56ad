"""Words of many languages that answers are made of: "answer", "is", "correct", "or", "not"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from engine.aptitude.marking.plain_text import fold
from engine.aptitude.questions import LETTERS

WORDS = Path(__file__).parent / "answer_words.json"


class AnswerWords:
    """The tables of answer_words.json as sets of folded words."""

    def __init__(self) -> None:
        raw = json.loads(WORDS.read_text(encoding="utf-8"))
        words = {kind: list(_split(" ".join(by.values()))) for kind, by in raw.items()}
        phrases = {
            kind: [fold(p) for by in raw[kind].values() for p in _phrases(by)]
            for kind in ("answer", "option", "choose")
        }
        self.answers, self.options, self.verbs = (
            tuple(dict.fromkeys(phrases[k])) for k in ("answer", "option", "choose")
        )
        self.fillers = frozenset(map(fold, words["filler"]))
        self.continuations = frozenset(map(fold, words["continue"]))
        self.ors = frozenset(map(fold, words["or"]))
        self.negatives = frozenset(fold(w) for w in raw["negative"]["words"].split())
        parts = [re.escape(fold(w)) for w in raw["negative"]["parts"].split()]
        self.negative_part = re.compile("|".join(parts))
        denied = "|".join(map(re.escape, raw["denied"]["words"].split(",")))
        denied_parts = "|".join(map(re.escape, raw["denied"]["parts"].split(",")))
        self.denial = re.compile(rf"\b(?:{denied})\b|{denied_parts}")
        right = {k: "|".join(map(re.escape, v.split(","))) for k, v in raw["right"].items()}
        self.is_right = re.compile(
            rf"[a-z]\)?[.):]{{0,2}} ?(?:(?:{right['copula']}) ?(?:(?:{right['article']}) )?"
            rf"(?:most )?| (?:die|la|le|el|il|the|den|det|de) "
            rf"|(?=[^\x00-\u024f]))(?:{right['right']})"
        )
        self.buts = frozenset(map(fold, words["but"]))
        self.positions = {
            word: i
            for by in raw["ordinal"].values()
            for i, spellings in enumerate(fold(by).split(","))
            for word in spellings.split()
        } | dict.fromkeys(map(fold, words["ordinal_last"]), -1)
        self.ordinal_nouns = tuple(map(fold, words["ordinal_noun"]))
        self.ordinals = {
            fold(letter): LETTERS[i]
            for by in raw["native_ordinals"].values()
            for i, letter in enumerate(by.split())
        }


def _split(listed: str) -> Iterator[str]:
    return iter(listed.replace(",", " ").split())


def _phrases(listed: str) -> list[str]:
    return listed.split(",") if "," in listed else listed.split()


@lru_cache(maxsize=1)
def answer_words() -> AnswerWords:
    """Read the tables once."""
    return AnswerWords()
