r"""Which option a reply chooses, however it says so; None where it does not say.

In this order: \boxed{B}; a sentence that names the answer ("The answer is **B**.", "B is
correct", "I choose (b)"), the last one counts; a reply that is or begins with a letter ("B", "(B)
4"); a last line that is one; a last line that is the text of exactly one option. Options that are
merely listed choose nothing, nor does "A or B", nor a letter that the question does not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.aptitude.questions import LETTERS

# A letter by itself. Lower case counts only in brackets or before punctuation or the end, and a
# capital A or I only where it does not begin a phrase: "the answer is a bit long", "I think".
LETTER = (
    r"(?:\(\s*([A-Za-z])\s*\)"
    r"|([B-HJ-Z])(?![\w'’])"
    r"|([AI])(?![\w'’])(?!\s+(?:think|would|believe|am|can|can't|cannot|do|don't|have|will)\b)"
    r"|([a-z])(?=\s*(?:[.,;:)\]!]|$)))"
)
OPTION = r"(?:option|choice|answer|letter)"
NAMED = [
    rf"\b(?i:{OPTION})(?i:\s+(?:to\s+.{{1,60}}?\s+)?(?:is|would\s+be|should\s+be|must\s+be"
    rf"|has\s+to\s+be|will\s+be)|\s*[:=])\s*:?\s*(?i:(?:the\s+)?{OPTION}\s*:?\s+)?{LETTER}",
    rf"\b(?i:(?:i|we)(?:['’]d|['’]ll|\s+would|\s+will)?\s+(?:choose|pick|select|go\s+with"
    rf"|opt\s+for|answer))\s*:?\s*(?i:(?:the\s+)?{OPTION}\s+)?{LETTER}",
    rf"\b(?i:{OPTION}\s+){LETTER}(?i:\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|true"
    rf"|answer|accurate|appropriate))\b",
    rf"(?:^|[\s(]){LETTER}[).:]?(?i:\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|answer))\b",
    rf"\b(?i:correct|best|right|final)\s+(?i:{OPTION}|one)\s*(?i:is|:)?\s*{LETTER}",
    rf"^\s*(?i:(?:the\s+)?answer)\s+{LETTER}[).:]*\s*$",
    rf"\A(?i:{OPTION})\s+{LETTER}(?:[).:]+\s.*|[).:]*)\Z",
]
# A second letter: not the I of "and I am sure", and after a comma only where no clause begins.
SECOND = re.compile(
    r"\s*(?:(?:or|and|/|&)\s*(?!\s*I\s+[a-z])\(?\s*[A-Za-z]\s*\)?(?![\w'’])"
    r"|,\s*\(?\s*[A-Z]\s*\)?(?=\s*(?:[,.;:/&)}\]!]|(?:or|and)\b|$)))",
    re.MULTILINE,
)
BOXED = re.compile(r"\\boxed\s*\{\s*(.*?)\s*\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
OPENING = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:\]]+(?=\s|$)|$)", re.MULTILINE)
NAMERS = [re.compile(pattern, re.MULTILINE) for pattern in NAMED]


def extract(reply: str, options: Sequence[str]) -> str | None:
    """The letter that `reply` chooses of these options, A for the first."""
    text = _plain(reply)
    if boxed := BOXED.findall(text):
        return _in_box(boxed[-1], options)
    text = text.replace("$", "")
    named = [found for pattern in NAMERS for found in pattern.finditer(text)]
    if named:
        last = max(named, key=lambda found: (found.end(), -found.start()))
        if _either(text, last):
            return None
        return _valid(next(g for g in last.groups() if g), options)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [found[1] for line in lines if (found := OPENING.match(line))]
    if len(starts) == 1 and (OPENING.match(lines[0]) or OPENING.fullmatch(lines[-1])):
        return _valid(starts[0], options)
    if starts and lines[-1].strip("(). ").upper() == starts[-1].upper():
        return _valid(starts[-1], options)
    return _by_text(lines[-1], options) if lines else None


def _in_box(content: str, options: Sequence[str]) -> str | None:
    """A letter ("B", "(B)"), the text of an option, or both ("B. 4")."""
    bare = content.strip("().$ ")
    begins = OPENING.match(content.strip("$ "))
    if begins and not _either(content.strip("$ "), begins):
        bare = begins[1]
    return _valid(bare, options) or _by_text(content, options)


def _plain(reply: str) -> str:
    """Without the thinking that some models show, and without mark-up."""
    text = THOUGHT.sub("", reply)
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"[*`\"“”]|__|^#+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"['‘]([A-Za-z])['’]", r"\1", text)
    return WRAPPED.sub(r"\1", text).strip()


def _either(text: str, found: re.Match[str]) -> bool:
    """Whether a second letter follows: "A or B"."""
    return SECOND.match(text, found.end()) is not None


def _valid(letter: str, options: Sequence[str]) -> str | None:
    upper = letter.upper()
    return upper if len(upper) == 1 and upper in LETTERS[: len(options)] else None


def _by_text(line: str, options: Sequence[str]) -> str | None:
    """The one option whose text `line` is, or ends with after "is" or a colon."""

    def bare(words: str) -> str:
        return " ".join(words.lower().split()).strip(" .")

    tail = bare(re.split(r"\banswer\s*(?:is|:)\s*:?", line, flags=re.IGNORECASE)[-1])
    same = [i for i, option in enumerate(options) if tail and bare(option) == tail]
    return LETTERS[same[0]] if len(same) == 1 else None
