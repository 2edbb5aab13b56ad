"""A question as another harness would put it: options in another order, other marks, other words
around it.

Who can answer a question can mostly answer it so, and the same holds for who cannot. A model that
has read a question in one form alone learns the form, and in a second pass the question.
"""

from __future__ import annotations

import re

import numpy as np

MARKS = ("{}. ", "{}. ", "({}) ", "{}) ", "{}: ")
LEADS = ("", "", "Question: ", "Q: ")
CHOICE = "Answer the following multiple choice question.\n\n"
TAILS = ("", "", "\nAnswer:", "\n\nA:")
OPTION = re.compile(r"\n(?=[A-Z]\. )")
REFERS = re.compile(r"\b(?:above|below|[A-J] (?:and|or) [A-J]|[Oo]ptions? [A-J])\b")


def options(text: str) -> tuple[str, list[str]]:
    """(question, options without their letters); no options where the end is no list from A on."""
    stem, *listed = OPTION.split(text)
    letters = "".join(part[0] for part in listed)
    if len(listed) < 2 or not "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters):
        return text, []
    return stem, [part[3:] for part in listed]


def reworded(random: np.random.Generator, text: str) -> str:
    """`text` in a form drawn at random; options that refer to others stay in their order."""
    stem, listed = options(text)
    leads = (*LEADS, CHOICE) if listed else LEADS
    lead, tail, mark = (parts[random.integers(len(parts))] for parts in (leads, TAILS, MARKS))
    if listed and not any(REFERS.search(option) for option in listed):
        listed = [listed[i] for i in random.permutation(len(listed))]
    lines = [mark.format(chr(65 + i)) + option for i, option in enumerate(listed)]
    return lead + "\n".join([stem, *lines]) + tail
