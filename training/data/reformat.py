"""Show a question in the format of another evaluation harness.

Options get another order and other markers, and other words surround them. A candidate that can
answer a question can mostly answer it in any format. A model that has read a question in one
format only learns the format, and in a second pass the question itself.
"""

from __future__ import annotations

import re

import numpy as np

OPTION_MARKERS = ("{}. ", "{}. ", "({}) ", "{}) ", "{}: ")
PREFIXES = ("", "", "Question: ", "Q: ")
CHOICE_PREFIX = "Answer the following multiple choice question.\n\n"
SUFFIXES = ("", "", "\nAnswer:", "\n\nA:")
OPTION = re.compile(r"\n(?=[A-Z]\. )")
REFERS_TO_OPTIONS = re.compile(r"\b(?:above|below|[A-J] (?:and|or) [A-J]|[Oo]ptions? [A-J])\b")


def options(text: str) -> tuple[str, list[str]]:
    """Split a text into (question, options without their letters); the list is empty if the text
    does not end with options from A on."""
    stem, *listed = OPTION.split(text)
    letters = "".join(part[0] for part in listed)
    if len(listed) < 2 or not "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(letters):
        return text, []
    return stem, [part[3:] for part in listed]


def reformat(random: np.random.Generator, text: str) -> str:
    """Render `text` in a format drawn at random; options that refer to others keep their order."""
    stem, listed = options(text)
    prefixes = (*PREFIXES, CHOICE_PREFIX) if listed else PREFIXES
    prefix, suffix, marker = (
        forms[random.integers(len(forms))] for forms in (prefixes, SUFFIXES, OPTION_MARKERS)
    )
    if listed and not any(REFERS_TO_OPTIONS.search(option) for option in listed):
        listed = [listed[i] for i in random.permutation(len(listed))]
    lines = [marker.format(chr(65 + i)) + option for i, option in enumerate(listed)]
    return prefix + "\n".join([stem, *lines]) + suffix
