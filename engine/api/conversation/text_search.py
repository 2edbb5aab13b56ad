"""Search texts that callers choose, in time that is linear in their length.

A pattern that is searched for holds the interpreter's lock until it is found, so long texts are
searched in steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

STEP_CHARS, OVERLAP_CHARS = 64 * 1024, 4096  # of a search; at most so much in a match
MATCH_CHARS = 16  # a match costs as much as searching so many characters


def search(
    pattern: re.Pattern[str], text: str, at: int, end: int | None = None
) -> re.Match[str] | None:
    """Search as pattern.search does, for matches of up to OVERLAP_CHARS."""
    end = len(text) if end is None else end
    while at < end:
        match = pattern.search(text, at, min(end, at + STEP_CHARS + OVERLAP_CHARS))
        if match is not None and match.start() < at + STEP_CHARS:
            return match
        at += STEP_CHARS
    return None


def cut(text: str, mark: str, pattern: re.Pattern[str], until: str = "") -> str:
    """Cut out every match of a pattern that begins with `mark`, with the blanks before it.

    until: the rest up to this is cut out too, and its first character, a line break.
    """
    pieces, at, begin = list[str](), 0, text.find(mark)
    while begin >= 0:
        if (match := pattern.match(text, begin)) is not None:
            pieces.append(text[at:begin].rstrip(" \t"))
            at = match.end()
            if until:
                at = text.find(until, at) + 1 or len(text)
        begin = text.find(mark, max(at, begin + 1))
    return "".join((*pieces, text[at:]))


@dataclass
class ScanBudget:
    """chars: how many may still be searched; after that nothing is found."""

    chars: int

    def find(self, text: str, what: str, at: int) -> int:
        """Search as str.find does."""
        found = text.find(what, at) if self.chars >= 0 else -1
        self.chars -= MATCH_CHARS + (len(text) if found < 0 else found) - at
        return found

    def matches(
        self, pattern: re.Pattern[str], text: str, at: int, end: int
    ) -> Iterator[re.Match[str]]:
        """Yield what pattern.finditer does, for matches of up to OVERLAP_CHARS."""
        while self.chars >= 0:
            match = search(pattern, text, at, end)
            self.chars -= MATCH_CHARS + (end if match is None else match.end()) - at
            if match is None:
                return
            yield match
            at = match.end()
